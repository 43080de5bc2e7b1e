"""The fused kernels against the matrix form: on a GPU where there is one, else interpreted.

Triton settles at its import whether it interprets. Where another test has imported it before this
file is collected, this file runs once more in a process of its own. The interpreter hides what
only a GPU shows: races between threads, and what the compiler makes of the code.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fwrnn.layers.equations import Rule, SlowWeights
from fwrnn.layers.kernels import eager, gpu

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
        pytest.skip("Triton was imported to compile; see the test in a process of its own")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    return "cpu"


@pytest.fixture(params=["registers", "streamed"])
def form(request, monkeypatch):
    """Where W and the memory are: small sizes never stream by themselves, or in so small tiles."""
    if request.param == "streamed":
        plan = gpu._plan
        changes = {"RESIDENT": False, "TILE": 8}
        monkeypatch.setattr(gpu, "_plan", lambda *sizes: plan(*sizes) | changes)


def problem(
    steps=3, batch=2, size=7, given=True, layer_norm=True, dtype=torch.float64, device="cpu",
    **constants,
):  # fmt: skip
    """Random arguments for ``gpu.forward`` up to the rule; the given memory is not symmetric."""

    def random(*shape, scale=1.0, mean=0.0):
        numbers = torch.randn(shape, dtype=torch.float64) * scale + mean
        return numbers.to(device, dtype)

    norm = random(size, scale=0.3, mean=1.0), random(size, scale=0.3)
    slow = SlowWeights(
        random(size, size, scale=0.5 / size**0.5), *(norm if layer_norm else (None, None))
    )
    memory = random(batch, size, size, scale=0.3 / size**0.5) if given else None
    rule = Rule(**{"nonlinearity": "tanh", "decay": 0.9, "fast_lr": 0.3} | constants)
    return random(steps, batch, size), random(batch, size, scale=0.5), memory, slow, rule


def reference(arguments, grad_states: Tensor) -> list[Tensor | None]:
    """States and gradients of everything, by autograd through the matrix form in float64."""
    *tensors, slow, rule = arguments
    leaves = [
        None if leaf is None else leaf.detach().double().requires_grad_()
        for leaf in (*tensors, *slow)
    ]
    states, *_ = eager.matrix(*leaves[:3], SlowWeights(*leaves[3:]), rule, None)
    wanted = [leaf for leaf in leaves if leaf is not None]
    found = iter(torch.autograd.grad(states, wanted, grad_states.double(), allow_unused=True))
    return [states.detach(), *(None if leaf is None else next(found) for leaf in leaves)]


def fused(arguments, grad_states: Tensor) -> list[Tensor | None]:
    """The same from the kernels, with the gradient of W as their callers compute it."""
    assert gpu.supports(*arguments)
    drive, hidden, *others = arguments
    states, trail, saved = gpu.forward(*arguments, save=True)
    assert trail.dtype == hidden.dtype
    grad_drive, *grads, gain, bias = gpu.backward(saved, trail, grad_states, drive, *others)
    grad_weight = torch.einsum("tbi,tbj->ij", grad_drive, trail[:-1])
    return [trail[1:], grad_drive, *grads, grad_weight, gain, bias]


NAMES = "states", "drive", "hidden", "memory", "weight_hh", "norm_weight", "norm_bias"


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
], ids=str)  # fmt: skip
def test_states_and_gradients_equal_the_matrix_form(device, form, settings):
    check(problem(device=device, **settings), 1e-11)


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
    check(problem(steps, batch, size, given, **settings), 1e-4)


@pytest.mark.parametrize("form", ["streamed"], indirect=True)
def test_more_reads_than_a_tile_holds(device, form):
    check(problem(11, 1, inner_steps=2, given=False, device=device), 1e-11)


@pytest.mark.skipif(not CUDA, reason="too much for the interpreter")
@pytest.mark.parametrize(
    ("steps", "batch", "size"), [(1024, 2, 256), (257, 12, 200), (1024, 5, 100), (300, 300, 20)]
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


def test_nothing_is_saved_unless_backward_follows(device, form):
    arguments = problem(device=device)
    states, trail, saved = gpu.forward(*arguments, save=False)
    assert saved == ()
    assert torch.equal(states, trail[1:])
    assert torch.equal(states, gpu.forward(*arguments, save=True)[0])


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_drive_is_computed_in_float32(device, half):
    drive, *rest = problem(steps=2, dtype=torch.float32, device=device)
    assert gpu.supports(drive.to(half), *rest)
    _, trail, _ = gpu.forward(drive.to(half), *rest, save=False)
    assert trail.dtype == torch.float32
    assert torch.equal(trail[1:], gpu.forward(drive.to(half).float(), *rest, save=False)[0])


def test_any_strides_are_taken(device):
    def turned(tensor: Tensor) -> Tensor:
        return tensor.transpose(0, 1).contiguous().transpose(0, 1)

    *tensors, slow, rule = arguments = problem(steps=2, batch=3, device=device)
    slow = slow._replace(weight_hh=turned(slow.weight_hh))
    others = (*map(turned, tensors), slow, rule)
    ones = torch.ones((), dtype=torch.float64, device=device).expand_as(tensors[0])
    for one, other in zip(fused(arguments, ones.clone()), fused(others, ones), strict=True):
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
    _, trail, _ = gpu.forward(numbers.to(device).view(1, 1, 25), hidden, None, slow, rule, False)
    wanted = getattr(torch, nonlinearity)(numbers)
    few_ulps = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(
        trail[1].cpu().flatten(), wanted, rtol=few_ulps, atol=0, equal_nan=True
    )


def test_what_is_supported(device):
    def supported(**changes) -> bool:
        return gpu.supports(*problem(device=device, **{"dtype": torch.float32} | changes))

    assert supported()
    assert supported(size=256, steps=1024, batch=1)
    assert not supported(size=257, batch=1)
    assert not supported(steps=1025)
    assert not supported(batch=0)
    assert not supported(dtype=torch.float16)
    drive, hidden, memory, slow, rule = problem(device=device)
    assert not gpu.supports(drive, hidden.float(), memory, slow, rule)
    assert not gpu.supports(drive, hidden, memory.float(), slow, rule)
    assert not gpu.supports(drive.float(), hidden, memory, slow, rule)
    assert not gpu.supports(drive, hidden, memory.to("meta"), slow, rule)


def test_a_cpu_is_not_supported_unless_triton_interprets(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not gpu.supports(*problem())


def test_triton_is_not_imported_with_the_module():
    lines = Path(gpu.__file__).read_text().splitlines()
    assert not [line for line in lines if line.startswith(("import", "from")) and "triton" in line]


@pytest.mark.skipif(READY or INTERPRETING_FROM_THE_START, reason="the tests above have run")
def test_all_of_this_in_a_process_of_its_own():
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-m", "pytest", "-q", __file__], env=environment, check=True)
