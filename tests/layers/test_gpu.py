"""The fused kernels against the matrix form: on a GPU where there is one, else interpreted.

Triton settles at its import whether it interprets. Where another test has imported it before this
file is collected, this file runs once more in a process of its own. The interpreter hides what
only a GPU shows: races between threads, and what the compiler makes of the code.
"""

import os
import subprocess
import sys
import threading
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from fwrnn import FastWeightsRNN
from fwrnn.layers import equations, kernels
from fwrnn.layers.equations import Rule, SlowWeights
from fwrnn.layers.kernels import cpu, gpu, sequences, trial
from tests.layers.layouts import spaced

CUDA = torch.cuda.is_available()
INTERPRETING_FROM_THE_START = os.environ.get("TRITON_INTERPRET") == "1"


def imported_to_interpret() -> bool:
    """Import Triton and the kernels with its interpreter on; False if it is too late for that."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        triton = pytest.importorskip("triton", reason="the kernels are in Triton")
        from fwrnn.layers.kernels import triton_loops
    functions = triton.language.sum, triton_loops.forward_loop
    return all(type(function).__name__ == "InterpretedFunction" for function in functions)


READY = CUDA or imported_to_interpret()


@pytest.fixture
def device(monkeypatch) -> str:
    if CUDA:
        return "cuda"
    if not READY:
        assert not INTERPRETING_FROM_THE_START, "Triton does not interpret, or calls it otherwise"
        pytest.skip("Triton was imported to compile; see the test in a process of its own")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    return "cpu"


def short_cases(*kind, cases=gpu.trial_cases) -> list[trial.Case]:
    """What the trial computes, with a third of the steps: more than a tile of 8 rows still."""
    return [case._replace(steps=11) for case in cases(*kind)]


@pytest.fixture(params=["registers", "streamed"])
def form(request, monkeypatch):
    """Where W and the memory are: small sizes never stream by themselves, or in so small tiles."""
    if request.param == "streamed":
        constants = gpu._constants
        changes = {"RESIDENT": False, "TILE": 8}
        monkeypatch.setattr(gpu, "_constants", lambda *given: constants(*given) | changes)
        monkeypatch.setattr(gpu, "trial_cases", short_cases)


@pytest.fixture(autouse=True)
def unwritten_is_nan():
    """New tensors start as NaN, so that nothing passes by luck with what was never written."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before)


def problem(
    steps=3, batch=2, size=7, given=True, layer_norm=True, read_gain=False, lengths=None,
    padding=float("nan"), dtype=torch.float64, device="cpu", **constants,
):  # fmt: skip
    """Random arguments for ``gpu.forward`` up to the lengths; the given memory is not symmetric.

    The drive past the end of a sequence is ``padding``.
    """

    def random(*shape, scale=1.0, mean=0.0):
        numbers = torch.randn(shape, dtype=torch.float64) * scale + mean
        return numbers.to(device, dtype)

    norm = random(size, scale=0.3, mean=1.0), random(size, scale=0.3)
    slow = SlowWeights(
        random(size, size, scale=0.5 / size**0.5),
        *(norm if layer_norm else (None, None)),
        random(size, mean=0.5) if read_gain else None,
    )
    memory = random(batch, size, size, scale=0.3 / size**0.5) if given else None
    rule = Rule(**{"nonlinearity": "tanh", "decay": 0.9, "fast_lr": 0.3} | constants)
    drive, hidden = random(steps, batch, size), random(batch, size, scale=0.5)
    if lengths is not None:
        lengths = torch.tensor(lengths, device=device)
        drive[past_the_end(steps, lengths)] = padding
    return drive, hidden, memory, slow, rule, lengths


def past_the_end(steps: int, lengths: Tensor) -> Tensor:
    """True at the steps that sequences do not have, (T, B)."""
    return torch.arange(steps, device=lengths.device).unsqueeze(-1) >= lengths


def matrix_form(drive, hidden, memory, slow, rule, lengths) -> Tensor:
    """The states (T, B, H), from the equations one sequence at a time: none runs past its end."""
    steps, batch, size = drive.shape
    if memory is None:
        memory = hidden.new_zeros(batch, size, size)
    sequences = []
    for b, length in enumerate([steps] * batch if lengths is None else lengths.tolist()):
        state, A, states = hidden[b : b + 1], memory[b : b + 1], []
        for step in drive[:length, b : b + 1]:
            bracket = equations.sustained_input(step, state, slow)
            read = partial(equations.read, A)
            state, _ = equations.inner_loop(bracket, state, read, slow, rule)
            A = equations.write(A, state, rule)
            states.append(state)
        sequences.append(torch.stack(states + [state] * (steps - length)))
    return torch.cat(sequences, 1)


def reference(arguments, grad_states: Tensor) -> list[Tensor | None]:
    """States and gradients of everything, by autograd through the matrix form in float64."""
    *tensors, slow, rule, lengths = arguments
    leaves = [
        None if leaf is None else leaf.detach().double().requires_grad_()
        for leaf in (*tensors, *slow)
    ]
    states = matrix_form(*leaves[:3], SlowWeights(*leaves[3:]), rule, lengths)
    wanted = [leaf for leaf in leaves if leaf is not None]
    found = iter(torch.autograd.grad(states, wanted, grad_states.double(), allow_unused=True))
    return [states.detach(), *(None if leaf is None else next(found) for leaf in leaves)]


def fused(arguments, grad_states: Tensor) -> list[Tensor | None]:
    """The same from the kernels, with the gradient of W as their callers compute it."""
    *others, lengths = arguments
    assert gpu.supports(*others)
    _, hidden, *others = others
    states, trail, saved = gpu.forward(*arguments, save=True)
    assert trail.dtype == hidden.dtype
    assert torch.equal(states, trail[1:])
    grad_drive, *grads, norm_weight, norm_bias, read_gain = gpu.backward(
        saved, trail, grad_states, *others, lengths
    )
    grad_weight = torch.einsum("tbi,tbj->ij", grad_drive, trail[:-1])
    return [states, grad_drive, *grads, grad_weight, norm_weight, norm_bias, read_gain]


NAMES = "states", "drive", "hidden", "memory", *SlowWeights._fields


def check(arguments, tolerance: float):
    """Compare both ways; the tolerance is relative to the largest number of each tensor."""
    grad_states = torch.randn(arguments[0].shape).to(arguments[1])
    results = fused(arguments, grad_states), reference(arguments, grad_states)
    for name, found, wanted in zip(NAMES, *results, strict=True):
        if found is None or wanted is None:
            # Autograd says None, or zeros are found, where there is nothing to influence.
            assert wanted is None and (found is None or not found.any()), name
            continue
        torch.testing.assert_close(
            found.double(),
            wanted,
            rtol=0,
            atol=tolerance * max(1.0, wanted.abs().max().item()),
            msg=lambda message, name=name: f"{name}: {message}",
        )


@pytest.mark.parametrize("settings", [
    {},
    {"given": False, "nonlinearity": "relu", "inner_steps": 2},
    {"layer_norm": False, "nonlinearity": "relu", "fast_lr": 0.05},
    {"layer_norm": False, "inner_steps": 2},
    {"inner_steps": 0},
    {"inner_steps": 5, "steps": 3, "batch": 1},
    {"boundary": "identity"},
    {"boundary": "identity", "inner_steps": 2, "nonlinearity": "relu"},
    {"inner_start": "previous"},
    {"inner_start": "previous", "inner_steps": 2, "given": False},
    {"decay": 0.0},
    {"decay": 1.0, "fast_lr": -0.3},
    {"read_gain": True, "inner_steps": 2},
    {"read_gain": True, "given": False, "layer_norm": False},
    {"read_gain": True, "boundary": "identity", "inner_steps": 2},
    {"read_gain": True, "inner_start": "previous", "nonlinearity": "relu"},
    {"read_gain": True, "inner_steps": 0},
    {"lengths": [1, 4, 2], "inner_steps": 2},
    {"lengths": [2, 3], "steps": 4, "given": False, "nonlinearity": "relu", "padding": 1e300},
    {"lengths": [3, 1], "layer_norm": False, "fast_lr": 0.05, "nonlinearity": "relu"},
    {"lengths": [2, 3], "inner_steps": 0},
    {"lengths": [3, 1, 2], "read_gain": True, "boundary": "identity"},
    {"lengths": [1, 3], "read_gain": True, "inner_start": "previous", "inner_steps": 2},
], ids=str)  # fmt: skip
def test_states_and_gradients_equal_the_matrix_form(device, form, settings):
    steps, batch = max(settings.get("lengths", [3])), len(settings.get("lengths", [1, 2]))
    check(problem(**{"steps": steps, "batch": batch, "device": device} | settings), 1e-11)


@pytest.mark.parametrize(("form", "steps", "batch", "size", "given"), [
    ("registers", 1, 5, 20, True),
    ("registers", 2, 3, 1, False),
    ("registers", 17, 1, 33, True),
    ("streamed", 1, 5, 1, True),
    ("streamed", 2, 3, 20, True),
    ("streamed", 11, 1, 33, False),
], indirect=["form"])  # fmt: skip
def test_odd_sizes_in_float32(device, form, steps, batch, size, given):
    settings = {"nonlinearity": "relu", "dtype": torch.float32, "device": device}
    if given:
        settings |= {"read_gain": True, "lengths": [1 + b % steps for b in range(batch)]}
    check(problem(steps, batch, size, given, **settings), 1e-4)


@pytest.mark.parametrize("form", ["streamed"], indirect=True)
def test_more_reads_than_a_tile_holds(device, form):
    check(problem(11, 1, inner_steps=2, given=False, device=device), 1e-11)


def test_nothing_past_the_end_is_used(device, form):
    settings = {"layer_norm": False, "nonlinearity": "relu", "read_gain": True, "decay": 1.0}
    arguments = problem(5, 3, lengths=[2, 5, 3], padding=0.0, device=device, **settings)
    drive, *rest, lengths = arguments
    past = past_the_end(5, lengths)
    # The largest number gives a state whose square overflows, and then NaN in everything.
    padded = drive.masked_fill(past.unsqueeze(-1), torch.finfo(drive.dtype).max)
    assert not matrix_form(padded, *rest, None).isfinite().all()
    grad_states = torch.randn(drive.shape).to(drive)
    wanted = fused(arguments, grad_states)
    for one, other in zip(fused((padded, *rest, lengths), grad_states), wanted, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)
    assert not wanted[1][past].any()


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("read_gain", [False, True])
@pytest.mark.parametrize("inner_steps", [0, 2])
def test_the_size_of_what_is_saved_is_known_before(device, layer_norm, read_gain, inner_steps):
    settings = {"layer_norm": layer_norm, "read_gain": read_gain, "inner_steps": inner_steps}
    drive, *_, rule, _ = arguments = problem(device=device, **settings)
    _, _, saved = gpu.forward(*arguments, save=True)
    sizes = 7, drive.dtype, layer_norm, read_gain, rule
    assert saved.shape == (gpu.saved_size(3, 2, *sizes),)
    symbols = ShapeEnv()  # of symbols that cannot be compared with anything
    steps, batch = symbols.create_unbacked_symint(), symbols.create_unbacked_symint()
    assert gpu.saved_size(steps, batch, *sizes) is not None


@pytest.mark.skipif(CUDA, reason="the interpreter alone tells what is loaded when")
@pytest.mark.parametrize("inner_steps", [0, 2])
@pytest.mark.parametrize("given", [False, True])
def test_a_barrier_parts_every_store_from_its_first_load(
    device, form, monkeypatch, given, inner_steps
):
    """On a GPU another thread loads, which without a barrier may be ahead of the one that stores.

    Threads that have passed a barrier may have passed no other: no place is stored to twice.
    """
    from triton.runtime.interpreter import InterpreterBuilder as Builder

    before, since, early = set(), set(), []  # addresses stored to, by the program that runs
    barrier, grid = Builder.create_barrier, Builder.set_grid_idx
    load, store = Builder.create_masked_load, Builder.create_masked_store

    def places(pointers, mask) -> set[int]:
        return set(pointers.data[np.broadcast_to(mask.data, pointers.data.shape)].tolist())

    def loading(builder, pointers, mask, *others):
        early.extend(since & places(pointers, mask))
        return load(builder, pointers, mask, *others)

    def storing(builder, pointers, value, mask, *others):
        new = places(pointers, mask)
        assert not new & (before | since)
        since.update(new)
        return store(builder, pointers, value, mask, *others)

    def passing(builder):
        before.update(since), since.clear()
        return barrier(builder)

    def beginning(builder, *place):
        before.clear(), since.clear()
        return grid(builder, *place)

    monkeypatch.setattr(Builder, "create_masked_load", loading)
    monkeypatch.setattr(Builder, "create_masked_store", storing)
    monkeypatch.setattr(Builder, "create_barrier", passing)
    monkeypatch.setattr(Builder, "set_grid_idx", beginning)
    settings = {"read_gain": True, "lengths": [5, 4], "inner_steps": inner_steps}
    arguments = problem(5, 2, given=given, device=device, **settings)
    fused(arguments, torch.ones_like(arguments[0]))
    assert not early
    if gpu._constants(None, arguments[3], arguments[4], None)["RESIDENT"] and not given:
        return  # no number is stored that is loaded again
    monkeypatch.setattr(Builder, "create_barrier", barrier)
    fused(arguments, torch.ones_like(arguments[0]))
    assert early or not inner_steps


def test_a_default_device_is_not_relied_on(device):
    arguments = problem(lengths=[2, 3], read_gain=True, device=device)
    grad_states = torch.ones_like(arguments[0])
    wanted = fused(arguments, grad_states)
    gpu._kept.clear()
    with torch.device("meta"):
        found = fused(arguments, grad_states)
    assert all(map(torch.equal, found, wanted))


@pytest.mark.skipif(not CUDA, reason="too much for the interpreter")
@pytest.mark.parametrize(
    ("steps", "batch", "size"), [(1024, 2, 256), (257, 12, 200), (1024, 5, 100), (300, 40, 20)]
)
@pytest.mark.parametrize("given", [False, True])
def test_long_sequences_twice_the_same(device, steps, batch, size, given):
    """Threads that overtake each other would show here, as a difference between two runs."""
    settings = {"dtype": torch.float32, "device": device, "fast_lr": 1 / size, "decay": 0.95}
    arguments = problem(steps, batch, size, given, **settings)
    check(arguments, 1e-4)
    grad_states = torch.randn_like(arguments[0])
    for one, other in zip(*(fused(arguments, grad_states) for _ in range(2)), strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


@pytest.mark.parametrize("inner_steps", [0, 2])
def test_kernels_are_compiled_for_plain_numbers(inner_steps):
    *_, slow, _, _ = problem(read_gain=True)
    rule = Rule(inner_steps=np.int64(inner_steps))
    constants = gpu._constants(None, slow, rule, None)
    assert {type(value) for value in constants.values()} <= {bool, int, float}
    assert {type(x) for x in gpu.variant(None, slow, rule, None)} <= {bool, int, str}


def test_gradients_share_no_storage(device):
    arguments = problem(read_gain=True, device=device)
    grads = [grad for grad in fused(arguments, torch.ones_like(arguments[0])) if grad is not None]
    assert len({grad.untyped_storage().data_ptr() for grad in grads}) == len(grads) == 8


def test_infinity_stays_infinite(device, form):
    drive, hidden, _, slow, rule, _ = problem(
        4, 2, layer_norm=False, inner_steps=0, nonlinearity="relu", dtype=torch.float32,
        device=device,
    )  # fmt: skip
    slow = SlowWeights(torch.full_like(slow.weight_hh, 1e10), None, None)
    drive = torch.full_like(drive, 1e30)
    states, *_ = gpu.forward(drive, hidden, None, slow, rule, None, save=False)
    assert states[-1].isinf().all()


class Compiled:
    """What Triton gives when it has compiled and launched a loop, noting how it is launched."""

    def __init__(self, launches):
        self.launches = launches

    def __getitem__(self, grid):
        return lambda *arguments: self.launches.append((grid, arguments))


class Loop(Compiled):
    def __getitem__(self, grid):
        return lambda *arguments, **named: (
            self.launches.append((grid, arguments, named)) or Compiled(self.launches)
        )


@pytest.mark.parametrize("backwards", [False, True])
def test_what_was_compiled_is_launched_by_addresses_with_the_same(device, monkeypatch, backwards):
    from fwrnn.layers.kernels import triton_loops

    launches, which = [], "backward_loop" if backwards else "forward_loop"
    names, loop = getattr(triton_loops, which).arg_names, Loop(launches)
    arguments = problem(2, 4, lengths=[2, 1, 2, 1], read_gain=True, device=device)
    states, trail, saved = gpu.forward(*arguments, save=True)

    def call(shift: int = 0) -> None:
        if backwards:
            grad_states = torch.randn(states.numel() + 1).to(states)[shift:][: states.numel()]
            gpu.backward(saved, trail, grad_states.view_as(states), *arguments[2:])
        else:
            gpu.forward(*arguments, save=True)

    monkeypatch.setattr(triton_loops, which, loop)
    call(), call()
    (grid, first, named), (again, second) = launches
    assert grid == (4,) and again == (4, 1, 1)
    constants = [named[name] for name in names[len(first) :]]
    assert second[len(first) :] == tuple(constants) and set(named) - {*names} == {
        "num_warps", "num_stages", "enable_fp_fusion",
    }  # fmt: skip
    *tensors, steps, batch = first
    assert second[len(tensors) : len(first)] == (steps, batch) == (2, 4)
    for given in map(names.index, ("lengths_ptr", "read_gain_ptr")):
        assert second[given] == tensors[given].data_ptr()
    if backwards:
        call(shift=1)  # not where the compiler was told that addresses would be
        assert launches[-1][0] == (4, 1, 1)
    assert not any(x % 16 for x in launches[-1][1][: len(tensors)])
    arguments = *arguments[:-1], arguments[-1].int()
    call()  # other numbers than the compiler was told that there would be
    assert launches[-1][2] == named


def test_tensors_may_begin_anywhere(device):
    def shifted(tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        return torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape)

    *tensors, slow, rule, lengths = arguments = problem(
        2, 3, lengths=[2, 1, 2], read_gain=True, padding=0.0, device=device
    )
    others = *map(shifted, tensors), SlowWeights(*map(shifted, slow)), rule, shifted(lengths)
    assert all(x.data_ptr() % 16 for x in (*others[:3], *others[3], others[5]))
    ones = torch.ones_like(tensors[0])
    for one, other in zip(fused(arguments, ones), fused(others, shifted(ones)), strict=True):
        assert torch.equal(one, other)


def test_what_a_cuda_graph_records_first_is_not_kept(device, monkeypatch):
    """It has no numbers before the graph is replayed, and what the graph reads has to stay."""
    rule, like = Rule(decay=0.77), (torch.float64, torch.device(device))
    capturing = True
    monkeypatch.setattr(gpu, "is_captured", lambda device: capturing)
    monkeypatch.setattr(trial, "is_captured", lambda device: capturing)
    kernels._kept_fading.cache_clear(), gpu._kept.clear()
    made = [*gpu._tables(rule, *like), kernels._known_fading(rule, 3, *like)]
    assert not gpu._kept and not kernels._kept_fading.cache_info().currsize
    capturing = False
    kept = gpu._tables(rule, *like)
    for one, other in zip(made, (*kept, kernels._known_fading(rule, 3, *like)), strict=True):
        assert one is not other
        torch.testing.assert_close(one, other, rtol=1e-14, atol=0)
    capturing = True
    assert gpu._tables(rule, *like) is kept and kernels._kept_fading.cache_info().hits == 0
    capturing = False
    for k in range(70):
        gpu._tables(Rule(decay=k / 100), *like)
    assert gpu._kept.get((rule, *like)) is not kept
    assert gpu._in_graphs.pop((rule, *like)) is kept


def test_tables_are_made_where_no_graph_takes_their_memory(device, monkeypatch):
    """torch.compile(mode="reduce-overhead") has a pool for what a thread of its allocates."""
    threads, make = [], gpu._made_tables
    monkeypatch.setattr(
        gpu, "_made_tables", lambda *key: threads.append(threading.get_ident()) or make(*key)
    )
    gpu._kept.clear()
    with torch.inference_mode():
        tables = gpu._tables(Rule(), torch.float32, torch.device(device))
    assert threads and threading.get_ident() not in threads
    assert not any(table.is_inference() for table in tables)


@pytest.mark.skipif(not CUDA, reason="needs CUDA graphs")
@pytest.mark.parametrize("memory", [False, True])
def test_cuda_graphs(device, memory):
    """Recorded by hand after one call, and by torch.compile at the first call of all."""
    layer = FastWeightsRNN(3, 20, device=device, backend="triton", decay=0.87)
    x = torch.randn(7, 5, 3, device=device)
    given = layer(x)[1].detach() if memory else None
    gpu._kept.clear(), kernels._kept_fading.cache_clear()
    compiled = torch.compile(layer, mode="reduce-overhead")
    for _ in range(4):
        torch.compiler.cudagraph_mark_step_begin()
        found, state = compiled(x, given)
        wanted, other = layer(x, given)
        torch.testing.assert_close(found, wanted)
        torch.testing.assert_close(state.memory.matrix(), other.memory.matrix())
        found.sum().backward()
    with torch.no_grad():
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            layer(x, given)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found, state = layer(x, given)
        gpu._kept.clear(), kernels._kept_fading.cache_clear()
        torch.full((1 << 24,), float("nan"), device=device)  # over whatever was freed
        wanted, other = layer(x, given)
        graph.replay()
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)
        torch.testing.assert_close(state.memory.matrix(), other.memory.matrix())


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.functionalize])
@pytest.mark.parametrize("backend", ["triton", "numba"])
def test_what_a_transform_sees_first_is_not_kept(device, transform, backend):
    layer, x = FastWeightsRNN(3, 5, backend=backend).requires_grad_(False), torch.randn(2, 2, 3)
    if backend == "triton":
        layer, x = layer.to(device), x.to(device)
    gpu._kept.clear()
    for cache in (cpu.Plan.cached, kernels._kept_fading):
        cache.cache_clear()
    try:
        transform(lambda y: (layer(x)[0] * y).sum())(torch.tensor(1.0, device=x.device))
    except RuntimeError as error:  # of what functionalize was not given
        assert "non-functional" in str(error) and transform is torch.func.functionalize
    layer.backend, found = "attention", layer(x)[0]
    torch.testing.assert_close(found, layer(x)[0], rtol=1e-5, atol=1e-6)


def test_nothing_is_saved_unless_backward_follows(device, form):
    arguments = problem(device=device)
    states, trail, saved = gpu.forward(*arguments, save=False)
    assert saved.shape == (0,) and saved.dtype == states.dtype
    assert torch.equal(states, trail[1:])
    assert states.untyped_storage().data_ptr() != trail.untyped_storage().data_ptr()
    assert torch.equal(states, gpu.forward(*arguments, save=True)[0])


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_drive_is_computed_in_float32(device, half):
    drive, *rest = problem(steps=2, dtype=torch.float32, device=device)
    assert gpu.supports(drive.to(half), *rest[:-1])
    _, trail, _ = gpu.forward(drive.to(half), *rest, save=False)
    assert trail.dtype == torch.float32
    assert torch.equal(trail[1:], gpu.forward(drive.to(half).float(), *rest, save=False)[0])


def test_any_strides_are_taken(device):
    def turned(tensor: Tensor) -> Tensor:
        return tensor.transpose(0, 1).contiguous().transpose(0, 1)

    *tensors, slow, rule, _ = arguments = problem(2, 3, read_gain=True, device=device)
    slow = slow._replace(weight_hh=turned(slow.weight_hh))
    others = (*map(turned, tensors), slow, rule, None)
    ones = torch.ones((), dtype=torch.float64, device=device).expand_as(tensors[0])
    for one, other in zip(fused(arguments, ones.clone()), fused(others, ones), strict=True):
        assert torch.equal(one, other)
    states, trail, saved = gpu.forward(*arguments, save=True)
    given = torch.randn_like(states), *arguments[2:]
    wanted = gpu.backward(saved, trail, *given)
    for one, other in zip(wanted, gpu.backward(spaced(saved), turned(trail), *given), strict=True):
        assert torch.equal(one, other)


@pytest.mark.filterwarnings("ignore:.*encountered in multiply:RuntimeWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("nonlinearity", ["relu", "tanh"])
def test_activations_over_their_whole_range(device, dtype, nonlinearity):
    numbers = [0.0, 1e-30, 1e-6, 0.02, 0.04, 0.2, 0.3, 1.0, 9.0, 50.0, 1e30, float("inf")]
    numbers = torch.tensor([*numbers, *(-n for n in numbers), float("nan")], dtype=dtype)
    slow = SlowWeights(torch.zeros(25, 25, dtype=dtype, device=device), None, None)
    hidden = torch.zeros(1, 25, dtype=dtype, device=device)
    rule = Rule(nonlinearity=nonlinearity, inner_steps=0)
    drive = numbers.to(device).view(1, 1, 25)
    _, trail, _ = gpu.forward(drive, hidden, None, slow, rule, None, save=False)
    wanted = getattr(torch, nonlinearity)(numbers)
    few_ulps = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(
        trail[1].cpu().flatten(), wanted, rtol=few_ulps, atol=0, equal_nan=True
    )


def test_what_is_supported(device):
    def supported(**changes) -> bool:
        return gpu.supports(*problem(device=device, **{"dtype": torch.float32} | changes)[:-1])

    assert supported()
    assert supported(size=256, steps=1024, batch=1)
    assert not supported(size=257, batch=1)
    assert not supported(steps=1025)
    assert not supported(batch=0)
    assert not supported(dtype=torch.float16)
    drive, hidden, memory, slow, rule, _ = problem(read_gain=True, device=device)
    assert gpu.supports(drive, hidden, memory, slow, rule)
    for unlike in (slow.read_gain.float(), slow.read_gain.to("meta")):
        assert not gpu.supports(drive, hidden, memory, slow._replace(read_gain=unlike), rule)
    assert not gpu.supports(drive, hidden.float(), memory, slow, rule)
    assert not gpu.supports(drive, hidden, memory.float(), slow, rule)
    assert not gpu.supports(drive.float(), hidden, memory, slow, rule)
    assert not gpu.supports(drive, hidden, memory.to("meta"), slow, rule)


def test_a_cpu_is_not_supported_unless_triton_interprets(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not gpu.supports(*problem()[:-1])


def test_triton_is_not_imported_with_the_module():
    program = "import sys, fwrnn.layers.kernels.gpu; assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.fixture
def untried(monkeypatch):
    """ "auto" as at the start of a process, where no CPU kernel comes before this one."""
    monkeypatch.setattr(sequences, "run", lambda *arguments: None)
    monkeypatch.setattr(cpu, "supports", lambda *arguments: False)
    monkeypatch.setattr(gpu, "trial_cases", short_cases)
    monkeypatch.setattr(trial, "_passed", set())
    monkeypatch.setattr(trial, "_failed", set())


@pytest.mark.slow
@pytest.mark.parametrize("settings", [
    {"inner_steps": 0}, {"nonlinearity": "relu", "read_gain": "fixed", "layer_norm": False},
    {"boundary": "identity", "nonlinearity": "relu"},
], ids=str)  # fmt: skip
def test_auto_takes_it_after_a_trial(device, form, untried, settings, recwarn):
    made = FastWeightsRNN(3, 5, device=device, **settings)
    x = torch.randn(2, 2, 3, device=device)
    assert made.form(x) == "triton"
    assert made.form(x, made(x)[1]) == "triton"  # with a memory it is another program
    assert len(trial._passed) == 2 and not recwarn.list
    made(x)
    assert len(trial._passed) == 2


@pytest.mark.parametrize("fault", ["forward", "backward", "launch"])
def test_auto_leaves_a_wrong_one_alone(device, untried, monkeypatch, fault):
    right = gpu.forward if fault == "forward" else gpu.backward

    def wrong(*arguments):
        if fault == "launch":
            raise RuntimeError("out of resources")
        first, *others = right(*arguments)
        return first * 1.01, *others

    monkeypatch.setattr(gpu, "forward" if fault == "forward" else "backward", wrong)
    made = FastWeightsRNN(3, 5, device=device)
    x = torch.randn(2, 2, 3, device=device)
    with pytest.warns(UserWarning, match="'triton' does not work on this") as caught:
        assert made.form(x) == made.form(x, made(x)[1]) == "attention"
    assert len(caught) == 1 and "backend='triton' insists" in str(caught[0].message)
    made.backend = "triton"
    assert made.form(x) == "triton"


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 20])
def test_a_trial_finds_no_fault_at_other_sizes(device, form, size):
    slow = problem(size=size, read_gain=True)[3]
    variant = gpu.variant(None, slow, Rule(nonlinearity="relu"), None)
    assert trial.fault_of(gpu, torch.device(device), torch.float32, variant) is None


@pytest.mark.skipif(READY or INTERPRETING_FROM_THE_START, reason="the tests above have run")
def test_all_of_this_in_a_process_of_its_own():
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-m", "pytest", "-q", __file__], env=environment, check=True)
