"""The fused CPU kernels against the reference: sizes, chunks, threads, and where they give way."""

import errno
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from filelock import FileLock
from torch.nn.utils.rnn import pack_sequence

from fwrnn import FastWeightsRNN
from fwrnn.layers.kernels import cpu, steps
from tests.layers.layouts import saved_as, spaced, turned
from tests.layers.test_fast_weights import clone, layer, random_state, tensors

BUILD = cpu._build  # which the tests' own turns take the place of
EXACT = {torch.float64: {"rtol": 1e-9, "atol": 1e-9}, torch.float32: {"rtol": 1e-3, "atol": 1e-4}}


def results(made, x, state=None) -> list[torch.Tensor]:
    """Outputs, final state, and the gradients of the input, the given state and the weights."""
    x = x.clone().requires_grad_()
    given = [part.clone().requires_grad_() for part in state or ()]
    output, final = made(x, tuple(given) if given else None)
    loss = output.sin().sum() + final.hidden.cos().sum() + final.memory.matrix().sin().mean()
    wanted = [x, *given, *made.parameters()]
    return [output, *tensors(final), *torch.autograd.grad(loss, wanted, allow_unused=True)]


def calm(made):
    """Slow weights small enough for a network without layer normalisation not to explode."""
    with torch.no_grad():
        made.weight_hh_l0.mul_(0.5 * made.hidden_size**-0.5)
        for parameter in () if made.layer_norm else made.parameters():
            parameter.mul_(0.2)
    return made


def assert_same(found, wanted, **tolerance):
    for one, other in zip(found, wanted, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one.double(), other.double(), **tolerance)


@pytest.mark.parametrize("dtype", EXACT, ids=str)
@pytest.mark.parametrize("inner_steps", [0, 1, 2, 5])
@pytest.mark.parametrize("layer_norm", [True, False])
@pytest.mark.parametrize("boundary", ["sustained", "identity"])
@pytest.mark.parametrize(
    ("steps", "batch", "units"), [(1, 1, 1), (7, 33, 19), (9, 5, 37), (4, 2, 64)]
)
def test_equals_the_reference(dtype, inner_steps, layer_norm, boundary, steps, batch, units):
    settings = {"inner_steps": inner_steps, "layer_norm": layer_norm, "boundary": boundary}
    exact = calm(layer(5, units, **settings, fast_lr=0.5 / units, backend="matrix"))
    made = clone(exact, backend="numba").to(dtype)
    x = torch.randn(steps, batch, 5)
    for state in (None, random_state(made, batch)):
        if state is not None:
            state = [part.to(dtype) / (4 * units) for part in state]
        wanted = results(exact, x.double(), state and [part.double() for part in state])
        assert_same(results(made, x.to(dtype), state), wanted, **EXACT[dtype])


@pytest.mark.parametrize("batch", [3, 40])  # along their units, and across a register
@pytest.mark.parametrize("chunk", [1, 3, 4, 10, 64])
@pytest.mark.parametrize("settings", [
    {}, {"inner_steps": 2, "nonlinearity": "tanh"}, {"boundary": "identity"},
    {"inner_start": "previous"}, {"decay": 0.0}, {"inner_steps": 0}, {"layer_norm": False},
], ids=str)  # fmt: skip
def test_chunks_change_nothing(monkeypatch, chunk, settings, batch):
    assert cpu.few(True, 1, torch.float64) in range(4, 40)
    exact = calm(layer(5, 9, **{"fast_lr": 0.05, **settings}, backend="matrix"))
    made = clone(exact, backend="numba")
    monkeypatch.setattr(cpu, "uncut_steps", lambda units: 0)
    monkeypatch.setattr(cpu, "cut_length", lambda units: chunk)
    x = torch.randn(11, batch, 5).double()
    for state in (None, [part / 20 for part in random_state(made, batch)]):
        assert_same(results(made, x, state), results(exact, x, state), **EXACT[torch.float64])


def test_long_sequences_are_cut_and_stay_right():
    exact = layer(3, 6, backend="matrix")
    x = torch.randn(130, 2, 3).double()
    assert cpu.uncut_steps(6) < 130
    made = clone(exact, backend="numba")
    assert_same(results(made, x), results(exact, x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("batch", [2, 40])
@pytest.mark.parametrize("steps", [6, 130])
@pytest.mark.parametrize("layout", [spaced, turned])
def test_what_is_saved_may_come_back_in_another_layout(steps, batch, layout):
    made = layer(3, 6, inner_start="previous", backend="numba")  # which reads all that is saved
    x, state = torch.randn(steps, batch, 3).double(), random_state(made, batch)
    wanted = results(made, x, state)
    with saved_as(layout):
        assert_same(results(made, x, state), wanted, rtol=0, atol=0)


def test_threads_change_nothing():
    made = layer(5, 20, backend="numba")
    x = torch.randn(6, 70, 5).double()
    alone = results(made, x)
    torch.set_num_threads(3)
    assert_same(results(made, x), alone, rtol=0, atol=1e-12)
    torch.testing.assert_close(made(x)[0], alone[0], rtol=0, atol=0)


@pytest.mark.parametrize("threads", [1, 64])
def test_gradients_may_have_other_threads_than_the_states(threads):
    made = layer(5, 20, backend="numba")
    x = torch.randn(6, 8, 5).double().requires_grad_()
    torch.set_num_threads(65 - threads)
    wanted = torch.autograd.grad(made(x)[0].sin().sum(), x)
    output, _ = made(x)
    torch.set_num_threads(threads)  # few or many sequences, for so many threads
    torch.testing.assert_close(torch.autograd.grad(output.sin().sum(), x), wanted)


@pytest.mark.parametrize(("batch", "units"), [(6, 8), (9, 12)])
def test_layouts_are_told_apart_where_both_save_as_much(batch, units):
    made = layer(3, units, backend="numba")
    packed = pack_sequence([torch.randn(1, 3).double() for _ in range(batch)])
    grads = []
    for threads in (2, 1):
        torch.set_num_threads(2)
        output, _ = made(packed)
        torch.set_num_threads(threads)
        grads.append(torch.autograd.grad(output.data.sin().sum(), made.weight_ih_l0)[0])
    torch.testing.assert_close(*grads)


def test_python_threads_stand_in_for_openmp(monkeypatch):
    made = layer(5, 20, backend="numba")
    x = torch.randn(6, 70, 5).double()
    alone = results(made, x)
    torch.set_num_threads(3)
    monkeypatch.setattr(cpu, "_openmp", lambda: None)
    assert_same(results(made, x), alone, rtol=0, atol=1e-12)


def test_not_a_number_stays_in_its_sequence():
    made = layer(5, 20, backend="numba")
    x = torch.randn(6, 40, 5).double()
    clean = made(x)[0]
    x[2, 7] = float("nan")
    output = made(x)[0]
    assert output[3, 7].isnan().all()
    others = torch.arange(40) != 7
    torch.testing.assert_close(output[:, others], clean[:, others], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", EXACT, ids=str)
@pytest.mark.parametrize("nonlinearity", ["relu", "tanh"])
def test_activations_over_their_whole_range(dtype, nonlinearity):
    numbers = torch.cat([torch.logspace(-30, 3, 500), torch.linspace(0, 25, 500)]).to(dtype)
    ends = torch.tensor([0.0, float("inf"), -float("inf"), float("nan")], dtype=dtype)
    numbers = torch.cat([numbers, -numbers, ends])
    made = FastWeightsRNN(len(numbers), len(numbers), nonlinearity=nonlinearity, bias=False,
                          inner_steps=0, dtype=dtype, backend="numba")  # fmt: skip
    slow = made._weights("_l0")[1]._replace(norm_weight=None, norm_bias=None, read_gain=None)
    drive, hidden = numbers.view(1, 1, -1), torch.zeros(1, len(numbers), dtype=dtype)
    with torch.no_grad():
        states, *_ = cpu.forward(drive, hidden, None, slow, made.rule, None, False)
    few_ulps = 4 * torch.finfo(dtype).eps
    wanted = getattr(torch, nonlinearity)(numbers)
    torch.testing.assert_close(states.flatten(), wanted, rtol=few_ulps, atol=0, equal_nan=True)


def test_auto_is_the_fused_form_where_it_reaches(monkeypatch):
    made = FastWeightsRNN(5, 7)
    x = torch.randn(6, 3, 5)
    state = made(x)[1]
    assert made.form(x) == made.form(x, state) == clone(made, backend="numba").form(x) == "numba"
    assert made.form(x[:1]) == made.form(x[:1], state) == "numba"  # one step, as a cell takes it
    monkeypatch.setattr(steps, "reach", lambda *step: False)
    assert made.form(x[:1], state) == "attention"
    assert made.form(x[:1], (state.hidden, state.memory.matrix())) == "matrix"
    assert made.form(x[:1], made(x.repeat(2, 1, 1))[1]) == "matrix"  # smaller than 12 states
    assert clone(made, backend="attention").form(x) == "attention"
    assert clone(made, backend="triton").form(x) == "attention"
    made.to(torch.bfloat16)
    assert made.form(x.bfloat16()) == "attention"
    assert made.form(torch.randn(15, 3, 5).bfloat16()) == "matrix"


def test_without_numba_the_layer_works(monkeypatch):
    made = FastWeightsRNN(5, 7)
    x = torch.randn(6, 3, 5)
    wanted = results(made, x)
    monkeypatch.setattr(cpu, "is_found", lambda package: False)
    assert made.form(x) == clone(made, backend="numba").form(x) == "attention"
    assert_same(results(made, x), wanted, rtol=1e-4, atol=1e-5)


@pytest.fixture
def kept(monkeypatch, tmp_path):
    """Loops that are compiled twice unless somebody waits: for each time whether they were to be
    kept, and what makes the path of the lock.

    Two threads, which look for it at the same time, stand for two processes.
    """
    from numba.core import config, event
    from numba.core.caching import FunctionCache

    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path / "cache"))
    file, compiled = tmp_path / "kept", []
    both_looked, both_compile = threading.Barrier(2), threading.Barrier(2)
    looked = threading.local()

    def build(kind, cache):
        if cache and not hasattr(looked, "before"):
            looked.before = True
            both_looked.wait(10)
        if cache and file.exists():
            return "read"
        with event.trigger_event("numba:run_pass", {"name": "a pass"}):
            compiled.append(cache)
            with suppress(threading.BrokenBarrierError):
                both_compile.wait(0.5)
        file.touch()
        return "compiled"

    monkeypatch.setattr(cpu, "import_module", lambda name: SimpleNamespace(build=build))
    monkeypatch.setattr(cpu, "_failures", [])
    lock = lambda: Path(FunctionCache(build).cache_path) / ".loops.lock"  # noqa: E731
    return SimpleNamespace(compiled=compiled, lock=lock)


def built_by_two() -> list[str]:
    with ThreadPoolExecutor(2) as both:
        return sorted(both.map(lambda _: BUILD("loops", torch.float32), range(2)))


def test_of_two_that_find_nothing_one_compiles_and_the_other_reads(kept):
    assert built_by_two() == ["compiled", "read"]
    assert kept.compiled == [True]


def test_both_types_of_number_are_compiled_in_turn(kept):
    dtypes = torch.float32, torch.float64
    with ThreadPoolExecutor(2) as both:
        assert sorted(both.map(lambda dtype: BUILD("loops", dtype), dtypes)) == ["compiled", "read"]


@pytest.mark.parametrize("fault", ["no folder", "full disk"])
def test_nobody_waits_where_nothing_can_be_kept(kept, monkeypatch, fault):
    if fault == "no folder":
        nowhere = RuntimeError("no locator available")
        monkeypatch.setattr("numba.core.caching.FunctionCache", raising(nowhere))
    else:
        full = OSError(errno.ENOSPC, "No space left on device")
        monkeypatch.setattr(cpu, "TemporaryFile", raising(full))
    assert built_by_two() == ["compiled"] * 2
    assert kept.compiled == [False] * 2


@pytest.mark.parametrize("fault", ["held too long", "no locks"])
def test_nobody_waits_for_a_lock_that_is_not_to_be_had(kept, monkeypatch, fault):
    monkeypatch.setattr(cpu, "LONGEST_WAIT", 0.05)
    with ExitStack() as held:
        if fault == "no locks":
            unsupported = OSError(errno.ENOLCK, "No locks available")
            monkeypatch.setattr(FileLock, "acquire", raising(unsupported))
        else:
            held.enter_context(FileLock(kept.lock()))
        assert built_by_two() == ["compiled"] * 2
    assert kept.compiled == [True] * 2


def raising(error):
    def function(*given, **named):
        raise error

    return function


NARROW = """
import torch
from fwrnn import FastWeightsRNN
from fwrnn.layers.kernels import simd
assert not simd.WIDE
made = FastWeightsRNN(5, 21, nonlinearity="relu", backend="numba")
exact = FastWeightsRNN(5, 21, nonlinearity="relu", backend="attention")
exact.load_state_dict(made.state_dict())
for batch in (2, 40):
    x = torch.randn(60, batch, 5)
    for one in (made, exact):
        one.zero_grad()
        one(x)[0].sin().sum().backward()
    for one, other in zip(made.parameters(), exact.parameters()):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-3)
"""


@pytest.mark.slow
def test_processors_with_narrow_registers(monkeypatch):
    monkeypatch.setenv("NUMBA_CPU_NAME", "generic")
    monkeypatch.setenv("NUMBA_CPU_FEATURES", "")
    done = subprocess.run([sys.executable, "-c", NARROW], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_kernels_that_cannot_be_kept_say_once_where_they_could_be(monkeypatch, caplog):
    def build(kind, cache):
        if cache:
            raise OSError("read-only")
        return "loops"

    monkeypatch.setattr(cpu, "import_module", lambda name: SimpleNamespace(build=build))
    monkeypatch.setattr(cpu, "_failures", [])
    for dtype in (torch.float32, torch.float64):
        assert cpu.compiled.__wrapped__("loops", dtype) == "loops"
    (said,) = caplog.messages
    assert "read-only" in said and "NUMBA_CACHE_DIR" in said


@pytest.mark.parametrize("compiles", [True, False])
def test_only_compiling_is_told_of_as_compiling(monkeypatch, caplog, compiles):
    from numba.core import event

    def build(kind, cache):
        if compiles:
            with event.trigger_event("numba:run_pass", {"name": "a pass"}):
                pass
        told[0]()

    told = []
    timer = SimpleNamespace(start=lambda: None, cancel=lambda: None)
    monkeypatch.setattr(cpu.threading, "Timer", lambda seconds, tell: told.append(tell) or timer)
    monkeypatch.setattr(cpu, "import_module", lambda name: SimpleNamespace(build=build))
    caplog.set_level("INFO")
    cpu.compiled.__wrapped__("loops", torch.float32)
    assert [message[:9] for message in caplog.messages] == ["compiling"] * compiles
