"""Vectors of numbers as values in Numba code, so that loops over sequences use whole registers.

Numba leaves vectorising to LLVM, which does not see that sixteen neighbours in memory are sixteen
sequences of a batch. A ``Vector`` says so: ``load`` reads one from an array, ``+ - * /`` and the
functions below work on all its lanes at once, ``store`` writes it back. LLVM turns each into the
instructions of the machine at hand, whatever their width.
"""

import operator
import zlib
from pathlib import Path

import numpy as np
from llvmlite import ir
from llvmlite.binding import address_of_symbol
from numba import from_dtype, njit, types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic, models, overload, register_model

# With AVX-512's 32 registers, 8 rows of two registers each fit beside what they are made of; with
# 16 registers of AVX2, or 32 half as wide as those of NEON, 4 rows do.
WIDE = "+avx512f" in cpu_target.target_context.codegen().magic_tuple()[2]
VECTOR_BYTES = 128 if WIDE else 64
MANY = 8 if WIDE else 4
# For what only compiled code calls: an entrance from Python, too, takes an eighth of the time, and
# so would checks of every division.
inner = njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, error_model="numpy")
# The same, copied to where it is called, in one place, so that LLVM goes through it once.
once = njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, error_model="numpy", inline="always")
LANES = {kind: VECTOR_BYTES // (kind.bitwidth // 8) for kind in (types.float32, types.float64)}


def loop_type(*names: str):
    """That of a C function of an address, at which 64-bit integers with these names lie."""
    return types.void(types.CPointer(from_dtype(np.dtype([(name, np.int64) for name in names]))))


def version_of(*files: str) -> int:
    """A checksum of these files and this one.

    Numba's cache on disk notices changes of a function's file, but not of what it imports; it does
    notice other values of a variable around the function, which this becomes in a ``build``.
    """
    return zlib.crc32(b"".join(Path(file).read_bytes() for file in (*files, __file__)))


def width(array) -> int:
    """Lanes of the vectors that ``array`` holds, a constant of the compiled code."""
    raise NotImplementedError("only in compiled code")


class Vector(types.Type):
    """The Numba type of ``lanes`` numbers of type ``scalar``."""

    def __init__(self, scalar: types.Float, lanes: int):
        self.scalar, self.lanes = scalar, lanes
        super().__init__(name=f"Vector({scalar}, {lanes})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, vector):
        scalar = manager.lookup(vector.scalar).get_value_type()
        super().__init__(manager, vector, ir.VectorType(scalar, vector.lanes))


def _vector(array_type) -> Vector:
    return Vector(array_type.dtype, LANES[array_type.dtype])


def _pointer(context, builder, array_type, array, index, llvm_type):
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), llvm_type.as_pointer())


def _itemsize(array_type) -> int:
    return array_type.dtype.bitwidth // 8


@intrinsic
def load(typing, array, index):
    """The lanes at ``array[index]`` and after it, in memory order."""

    def generate(context, builder, signature, arguments):
        return _lanes_at(context, builder, array, *arguments)

    return _vector(array)(array, types.intp), generate


def _lanes_at(context, builder, array_type, array, index):
    kind = context.get_value_type(_vector(array_type))
    pointer = _pointer(context, builder, array_type, array, index, kind)
    return builder.load(pointer, align=_itemsize(array_type))


@intrinsic
def store(typing, array, index, value):
    """Write the lanes of ``value`` to ``array[index]`` and after it."""

    def generate(context, builder, signature, arguments):
        pointer = _pointer(context, builder, array, *arguments[:2], context.get_value_type(value))
        builder.store(arguments[2], pointer, align=_itemsize(array))
        return context.get_dummy_value()

    return types.void(array, types.intp, value), generate


@intrinsic
def splat(typing, scalar):
    """The same number in all lanes."""
    vector = Vector(scalar, LANES[scalar])
    return vector(scalar), lambda context, builder, signature, arguments: _splat(
        builder, *arguments, context.get_value_type(vector)
    )


@intrinsic
def broadcast(typing, array, index):
    """``array[index]`` in all lanes."""

    def generate(context, builder, signature, arguments):
        return _number_at(context, builder, array, *arguments)

    return _vector(array)(array, types.intp), generate


def _number_at(context, builder, array_type, array, index):
    kind = context.get_value_type(_vector(array_type))
    number = builder.load(_pointer(context, builder, array_type, array, index, kind.element))
    return _splat(builder, number, kind)


def _splat(builder, number, kind):
    nowhere = ir.Constant(kind, ir.Undefined)
    one = builder.insert_element(nowhere, number, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, nowhere, _mask([0] * kind.count))


def _mask(indices) -> ir.Constant:
    return ir.Constant(ir.VectorType(ir.IntType(32), len(indices)), list(indices))


def _call(name, builder, values):
    """Call LLVM's intrinsic ``name`` for the type of ``values``."""
    kind = values[0].type
    suffix = f"v{kind.count}f{64 if isinstance(kind.element, ir.DoubleType) else 32}"
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(kind, [kind] * len(values)), f"llvm.{name}.{suffix}"
    )
    return builder.call(function, values)


@intrinsic
def fma(typing, a, b, c):
    """a · b + c, in one instruction where the machine has one."""
    return a(a, a, a), lambda context, builder, signature, values: _call("fmuladd", builder, values)


@intrinsic
def sqrt(typing, a):
    """The square root of each lane."""
    return a(a), lambda context, builder, signature, values: _call("sqrt", builder, values)


# Lambert's continued fraction of tanh y, cut off after 7 or 9 terms, as y · P(y²) / Q(y²), highest
# powers first; how often y was halved before; and where tanh is 1 in this precision.
TANH = {
    types.float32: ((1, 378, 17325, 135135), (28, 3150, 62370, 135135), 2, 9.2),
    types.float64: (
        (1, 990, 135135, 4729725, 34459425),
        (45, 13860, 945945, 16216200, 34459425),
        3,
        20.0,
    ),
}


@intrinsic
def tanh(typing, a):
    """The hyperbolic tangent of each lane, to 3 units in the last place; keeps not-a-number."""
    upper, lower, halvings, limit = TANH[a.scalar]

    def generate(context, builder, signature, arguments):
        def constant(number):
            return ir.Constant(arguments[0].type, [float(number)] * a.lanes)

        def polynomial(coefficients, variable):
            value = constant(coefficients[0])
            for coefficient in coefficients[1:]:
                value = _fma(builder, value, variable, constant(coefficient))
            return value

        x = arguments[0]
        for sign, edge in ((">", limit), ("<", -limit)):
            x = builder.select(builder.fcmp_ordered(sign, x, constant(edge)), constant(edge), x)
        y = builder.fmul(x, constant(0.5**halvings))
        square = builder.fmul(y, y)
        scaled = builder.fmul(y, polynomial(upper, square))
        result = builder.fdiv(scaled, polynomial(lower, square))
        for _ in range(halvings):  # tanh 2y = 2 tanh y / (1 + tanh² y)
            bottom = _fma(builder, result, result, constant(1))
            result = builder.fdiv(builder.fadd(result, result), bottom)
        return result

    return a(a), generate


@intrinsic
def relu(typing, a):
    """max(a, 0) in each lane; not-a-number stays so, as in ``torch.relu``."""

    def generate(context, builder, signature, arguments):
        zero = ir.Constant(arguments[0].type, [0.0] * a.lanes)
        negative = builder.fcmp_ordered("<", arguments[0], zero)
        return builder.select(negative, zero, arguments[0])

    return a(a), generate


@intrinsic
def where_positive(typing, gate, a):
    """a in the lanes where ``gate`` exceeds 0, else 0: what ReLU does to a gradient."""

    def generate(context, builder, signature, arguments):
        zero = ir.Constant(arguments[0].type, [0.0] * a.lanes)
        return builder.select(builder.fcmp_ordered(">", arguments[0], zero), arguments[1], zero)

    return a(gate, a), generate


@intrinsic
def negative(typing, a):
    """-a."""
    return a(a), lambda context, builder, signature, values: builder.fneg(*values)


@intrinsic
def zero(typing, array):
    """A vector of zeros of the kind that ``array`` holds."""
    vector = _vector(array)

    def generate(context, builder, signature, arguments):
        return ir.Constant(context.get_value_type(vector), [0.0] * vector.lanes)

    return vector(array), generate


@overload(width)
def _width(array):
    lanes = LANES[array.dtype]
    return lambda array: lanes


def _rows_loader(count):
    @intrinsic
    def load_rows(typing, array, at, stride):
        rows = types.UniTuple(_vector(array), count)

        def generate(context, builder, signature, arguments):
            places = [_offset(builder, *arguments[1:], row) for row in range(count)]
            found = [_lanes_at(context, builder, array, arguments[0], at) for at in places]
            return context.make_tuple(builder, rows, found)

        return rows(array, types.intp, types.intp), generate

    return load_rows


load_1, load_2, load_4, load_many = (_rows_loader(count) for count in (1, 2, 4, MANY))


@inner
def zeros_4(array):
    """Four vectors of zeros of the kind that ``array`` holds."""
    return zero(array), zero(array), zero(array), zero(array)


def _offset(builder, at, stride, row):
    return builder.add(at, builder.mul(stride, ir.Constant(stride.type, row)))


@intrinsic
def store_rows(typing, array, at, stride, rows):
    """Write row r of a tuple of vectors to ``array[at + r·stride]`` and after it."""

    def generate(context, builder, signature, arguments):
        for row, value in enumerate(cgutils.unpack_tuple(builder, arguments[3])):
            where = _offset(builder, arguments[1], arguments[2], row)
            pointer = _pointer(context, builder, array, arguments[0], where, value.type)
            builder.store(value, pointer, align=_itemsize(array))
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, rows), generate


def _rowwise(read):
    """An intrinsic that changes each of a tuple's rows with what ``read`` finds for it."""

    @intrinsic
    def apply(typing, rows, array, at, stride, vector):
        def generate(context, builder, signature, arguments):
            _, numbers, at, stride, factor = arguments
            results = []
            for row, value in enumerate(cgutils.unpack_tuple(builder, arguments[0])):
                place = _offset(builder, at, stride, row)
                found = read(context, builder, array, numbers, place)
                results.append(_fma(builder, found, factor, value))
            return context.make_tuple(builder, rows, results)

        return rows(rows, array, types.intp, types.intp, vector), generate

    return apply


def _fma(builder, a, b, c):
    return _call("fmuladd", builder, [a, b, c])


# rows[r] + array[at + r·stride …] · vector, lane by lane; and the same with one number for a row.
fma_rows = _rowwise(_lanes_at)
fma_broadcast = _rowwise(_number_at)


@intrinsic
def scale_rows(typing, rows, array, at, stride):
    """rows[r] · array[at + r·stride]."""

    def generate(context, builder, signature, arguments):
        scaled = []
        for row, value in enumerate(cgutils.unpack_tuple(builder, arguments[0])):
            place = _offset(builder, *arguments[2:], row)
            found = _number_at(context, builder, array, arguments[1], place)
            scaled.append(builder.fmul(value, found))
        return context.make_tuple(builder, rows, scaled)

    return rows(rows, array, types.intp, types.intp), generate


@intrinsic
def number(typing, array, value):
    """``value`` in all lanes, as the kind of number that ``array`` holds."""
    vector = _vector(array)

    def generate(context, builder, signature, arguments):
        scalar = context.cast(builder, arguments[1], value, array.dtype)
        return _splat(builder, scalar, context.get_value_type(vector))

    return vector(array, value), generate


@intrinsic
def times(typing, rows, vector):
    """rows[r] · vector."""

    def generate(context, builder, signature, arguments):
        values = cgutils.unpack_tuple(builder, arguments[0])
        return context.make_tuple(
            builder, rows, [builder.fmul(value, arguments[1]) for value in values]
        )

    return rows(rows, vector), generate


@intrinsic
def add_scaled(typing, rows, factors, vector):
    """rows[r] + factors[r] · vector."""

    def generate(context, builder, signature, arguments):
        pairs = zip(
            cgutils.unpack_tuple(builder, arguments[0]),
            cgutils.unpack_tuple(builder, arguments[1]),
            strict=True,
        )
        results = [_fma(builder, factor, arguments[2], value) for value, factor in pairs]
        return context.make_tuple(builder, rows, results)

    return rows(rows, rows, vector), generate


@intrinsic
def weigh_rows(typing, start, rows, array, at, stride):
    """start + Σ_r rows[r] · array[at + r·stride …], lane by lane."""

    def generate(context, builder, signature, arguments):
        result = arguments[0]
        for row, value in enumerate(cgutils.unpack_tuple(builder, arguments[1])):
            place = _offset(builder, *arguments[3:], row)
            found = _lanes_at(context, builder, array, arguments[2], place)
            result = _fma(builder, value, found, result)
        return result

    return start(start, rows, array, types.intp, types.intp), generate


@intrinsic
def claim(typing, counters, index):
    """Add 1 to ``counters[index]`` and return what it was, as one atomic step.

    What a thread wrote before its claim can be read by those that claim after it.
    """

    def generate(context, builder, signature, arguments):
        pointer = _pointer(
            context, builder, counters, *arguments, context.get_value_type(counters.dtype)
        )
        one = ir.Constant(ir.IntType(64), 1)
        return builder.atomic_rmw("add", pointer, one, "acq_rel")

    return types.int64(counters, types.intp), generate


@intrinsic
def _seen(typing, counters, index):
    """``counters[index]``, and with it what was written before the claims that made it so."""

    def generate(context, builder, signature, arguments):
        integer = context.get_value_type(counters.dtype)
        pointer = _pointer(context, builder, counters, *arguments, integer)
        return builder.load_atomic(pointer, "acquire", 8)

    return types.int64(counters, types.intp), generate


@intrinsic
def _let_others_run(typing):
    """Give the processor to a thread that waits for one, where the C library offers that."""

    def generate(context, builder, signature, arguments):
        if YIELD is not None:
            kind = ir.FunctionType(ir.IntType(32), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, YIELD), [])
        return context.get_dummy_value()

    return types.void(), generate


YIELD = "sched_yield" if address_of_symbol("sched_yield") else None


@inner
def wait(counters, index, count):
    """Until others, whose work is going on, have claimed ``counters[index]`` so often.

    They may be without a processor, if there are more threads than those.
    """
    turns = 0
    while _seen(counters, index) < count:
        turns += 1
        if turns > SOON:
            _let_others_run()


SOON = 1000  # turns of a wait that are cheaper than asking the system


@intrinsic
def at_address(typing, address, kind):
    """The address, an integer, as a pointer to numbers of type ``kind``, for ``numba.carray``."""
    pointer = types.CPointer(kind.dtype)

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(pointer))

    return pointer(types.int64, kind), generate


@intrinsic
def as_integers(typing, pointer):
    """The same pointer, to 64-bit integers."""
    integers = types.CPointer(types.int64)

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], context.get_value_type(integers))

    return integers(pointer), generate


@intrinsic
def total(typing, a):
    """The sum over the lanes, a scalar, by halves."""

    def generate(context, builder, signature, arguments):
        value, width = arguments[0], a.lanes
        while width > 1:
            width //= 2
            low = builder.shuffle_vector(value, value, _mask(range(width)))
            high = builder.shuffle_vector(value, value, _mask(range(width, 2 * width)))
            value = builder.fadd(low, high)
        return builder.extract_element(value, ir.Constant(ir.IntType(32), 0))

    return a.scalar(a), generate


@intrinsic
def first(typing, a):
    """The number in the first lane."""

    def generate(context, builder, signature, arguments):
        return builder.extract_element(arguments[0], ir.Constant(ir.IntType(32), 0))

    return a.scalar(a), generate


def _arithmetic(symbol, instruction):
    @intrinsic
    def apply(typing, a, b):
        def generate(context, builder, signature, values):
            return getattr(builder, instruction)(*values)

        return a(a, a), generate

    @overload(symbol)
    def choose(a, b):
        if isinstance(a, Vector) and isinstance(b, Vector):
            return lambda a, b: apply(a, b)
        return None


_arithmetic(operator.add, "fadd")
_arithmetic(operator.sub, "fsub")
_arithmetic(operator.mul, "fmul")
_arithmetic(operator.truediv, "fdiv")


@intrinsic
def transpose_tile(typing, source, start, stride, target, target_start, target_stride):
    """Copy a square tile of half a vector's lanes from ``source`` to ``target``, transposed.

    Row r of the tile lies at ``source[start + r·stride]``, column r goes to
    ``target[target_start + r·target_stride]``.
    """
    width = LANES[source.dtype] // 2

    def generate(context, builder, signature, arguments):
        kind = ir.VectorType(context.get_value_type(source.dtype), width)

        def address(array_type, array, first, step, row):
            offset = builder.add(first, builder.mul(step, ir.Constant(step.type, row)))
            return _pointer(context, builder, array_type, array, offset, kind)

        align = _itemsize(source)
        rows = [
            builder.load(address(source, *arguments[:3], row), align=align) for row in range(width)
        ]
        for row, values in enumerate(_transposed(builder, rows)):
            builder.store(values, address(target, *arguments[3:], row), align=align)
        return context.get_dummy_value()

    numbers = (types.intp, types.intp)
    return types.void(source, *numbers, target, *numbers), generate


def _transposed(builder, rows):
    """A square of registers transposed by exchanging ever smaller blocks between pairs of rows."""
    width = len(rows)
    size = width // 2
    while size:
        upper = [k + width * (k & size > 0) - size * (k & size > 0) for k in range(width)]
        lower = [k + size + (width - size) * (k & size > 0) for k in range(width)]
        for row in range(width):
            if not row & size:
                a, b = rows[row], rows[row + size]
                rows[row] = builder.shuffle_vector(a, b, _mask(upper))
                rows[row + size] = builder.shuffle_vector(a, b, _mask(lower))
        size //= 2
    return rows
