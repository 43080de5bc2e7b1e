"""What "auto" does about fused kernels that are wrong, or fail, where it first uses them."""

import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from fwrnn import FastWeightsRNN
from fwrnn.layers import kernels
from fwrnn.layers.associative_lstm import AssociativeLSTM
from fwrnn.layers.kernels import associative, cpu, operators, sequences, trial

pytestmark = pytest.mark.usefixtures("untried")
CPU = torch.device("cpu")


@pytest.fixture
def trials(monkeypatch) -> list[str]:
    """The names of the threads that trials of the layer ran in, as they come."""
    names, fault_of = [], trial.fault_of

    def noted(*arguments):
        names.append(threading.current_thread().name)
        return fault_of(*arguments)

    monkeypatch.setattr(trial, "fault_of", noted)
    return names


def wrong_states(monkeypatch, module=cpu):
    forward = module.forward

    def wrong(*arguments):
        states, *others = forward(*arguments)
        return states * 1.01, *others

    monkeypatch.setattr(module, "forward", wrong)


def wrong_gradient(monkeypatch, which, module=cpu):
    backward = module.backward

    def wrong(*arguments):
        return [g * 1.02 if k == which else g for k, g in enumerate(backward(*arguments))]

    monkeypatch.setattr(module, "backward", wrong)


def failing(monkeypatch, error, module=cpu, name="backward"):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(module, name, fail)


def refused(layer, x, match):
    """The only warning of several uses; checks that they came to what attention computes."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for dtype in (torch.float32, torch.float64):
            for given in (x, x[:-1], x[:, :1]):
                layer.to(dtype)
                assert layer.form(given.to(dtype)) == "attention"
                found = layer(given.to(dtype))[0]
                layer.backend = "attention"
                assert torch.equal(found, layer(given.to(dtype))[0])
                layer.backend = "auto"
    (warning,) = caught
    assert match in str(warning.message) and len(str(warning.message).splitlines()) == 1
    return str(warning.message)


@pytest.mark.parametrize(("break_it", "said"), [
    (wrong_states, "h is off by 0.01 times"),
    (lambda patch: wrong_gradient(patch, 0), "the gradient of the drive is off by 0.02 times"),
    (lambda patch: wrong_gradient(patch, 1), "the gradient of the first state"),
    (lambda patch: wrong_gradient(patch, 2), "the gradient of the memory"),
    (lambda patch: wrong_gradient(patch, 3), "the gradient of the norm's weight"),
    (lambda patch: wrong_gradient(patch, 4), "the gradient of the norm's bias"),
    (lambda patch: wrong_gradient(patch, 5), "the gradient of the read's gain"),
    (lambda patch: failing(patch, RuntimeError("out of\nregisters")), "RuntimeError: out of)"),
    (lambda patch: failing(patch, ValueError()), "(ValueError)"),
    (lambda patch: failing(patch, ImportError("no NumPy"), name="compiled"), "no NumPy"),
    (lambda patch: failing(patch, TypeError("no such CPU"), name="_build"), "no such CPU"),
])  # fmt: skip
def test_a_kernel_that_does_not_work_is_left_alone_and_said_so_once(monkeypatch, break_it, said):
    cpu.Plan.cached.cache_clear()
    cpu.compiled.cache_clear()
    break_it(monkeypatch)
    message = refused(FastWeightsRNN(5, 7), torch.randn(6, 3, 5), said)
    assert "'numba'" in message and "CPU" in message and "backend='numba' insists" in message
    assert FastWeightsRNN(5, 7, backend="numba").form(torch.randn(6, 3, 5)) == "numba"


def test_a_full_gpu_is_no_fault_of_the_kernel(monkeypatch, recwarn):
    layer, x = FastWeightsRNN(5, 7), torch.randn(6, 3, 5)
    with monkeypatch.context() as patch, pytest.raises(torch.OutOfMemoryError):
        failing(patch, torch.OutOfMemoryError("CUDA out of memory"))
        layer(x)
    output, _ = layer(x)
    assert layer.form(x) == "numba" and not recwarn.list
    failing(monkeypatch, torch.OutOfMemoryError("CUDA out of memory"), sequences, "_backward")
    with pytest.raises(torch.OutOfMemoryError):  # not tried again in a form that needs more
        output.sum().backward()


def test_not_a_number_is_wrong(monkeypatch):
    forward = cpu.forward
    monkeypatch.setattr(cpu, "forward", lambda *a: [x * float("nan") for x in forward(*a)])
    refused(FastWeightsRNN(5, 7), torch.randn(6, 3, 5), "h is off by nan")


def test_a_kernel_that_works_is_tried_once(trials, recwarn):
    for _ in range(3):
        assert FastWeightsRNN(5, 7).form(torch.randn(6, 3, 5)) == "numba"
    assert len(trials) == 1
    FastWeightsRNN(5, 7, dtype=torch.float64)(torch.randn(6, 3, 5).double())
    assert len(trials) == 2  # it is compiled for each type of number
    FastWeightsRNN(5, 7, backend="attention")(torch.randn(6, 3, 5))
    assert len(trials) == 2 and not recwarn.list


def test_a_kernel_that_is_asked_for_is_not_tried(trials):
    FastWeightsRNN(5, 7, backend="numba")(torch.randn(6, 3, 5))
    assert not trials


def test_threads_wait_for_one_trial(monkeypatch):
    calls = []

    def fault():
        calls.append(1)
        time.sleep(0.2)
        return "wrong"

    def ask(_):
        return trial.passes("a kernel", CPU, None, fault, "no")

    with warnings.catch_warnings(record=True) as caught, ThreadPoolExecutor(8) as team:
        warnings.simplefilter("always")
        assert not any(team.map(ask, range(8)))
    assert len(calls) == len(caught) == 1


def test_a_fault_in_one_variant_is_held_against_all():
    assert trial.passes("a kernel", CPU, 1, lambda: None, "no")
    with pytest.warns(UserWarning, match="'a kernel' does not work on this CPU .slow.; no"):
        assert not trial.passes("a kernel", CPU, 2, lambda: "slow", "no")
    assert not trial.passes("a kernel", CPU, 1, lambda: None, "no")
    assert trial.passes("another", CPU, 1, lambda: None, "no")


def test_nothing_is_tried_while_a_cuda_graph_is_captured(monkeypatch):
    monkeypatch.setattr(trial, "_kind", lambda device: "GPU")
    capturing = [True]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing[0])
    cuda, calls = torch.device("cuda", 0), []

    def ask() -> bool:
        return trial.passes("a kernel", cuda, None, lambda: calls.append(1), "no")

    assert not ask() and not calls
    capturing[0] = False
    assert ask() and calls
    capturing[0] = True
    assert ask() and len(calls) == 1


def vmapped(layer, x):
    return torch.vmap(lambda x: layer(x)[0])(x.unsqueeze(0))


def traced(layer, x):
    program = make_fx(lambda x: layer(x)[0])(x)
    assert program.code.count("fwrnn.recurrence") == 1 and "einsum" not in program.code


def compiled(layer, x):
    torch._dynamo.reset()
    return torch.compile(layer, fullgraph=True, backend="aot_eager")(x)


def fake(layer, x):
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert layer(mode.from_tensor(x))[0].shape == (6, 3, 7)


@pytest.mark.parametrize("use", [vmapped, traced, compiled, fake])
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_who_looks_at_the_layer_does_not_see_the_trial(use, trials):
    layer, x = FastWeightsRNN(5, 7), torch.randn(6, 3, 5)
    with torch.no_grad():
        use(layer, x)
    assert len(trials) == 1 and trials[0] != threading.current_thread().name
    assert trial._passed and not trial._failed


@pytest.mark.parametrize("use", [vmapped, traced, compiled, fake])
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_who_looks_at_the_layer_gets_another_form_of_a_wrong_kernel(use, monkeypatch, trials):
    wrong_states(monkeypatch)
    layer, x = FastWeightsRNN(5, 7), torch.randn(6, 3, 5)
    with torch.no_grad(), pytest.warns(UserWarning, match="'numba' does not work"):
        if use is traced:
            assert "fwrnn.recurrence" not in make_fx(lambda x: layer(x)[0])(x).code
        else:
            use(layer, x)
    assert len(trials) == 1


@pytest.mark.parametrize("enter", [
    torch.no_grad, torch.inference_mode, lambda: torch.device("meta"),
    lambda: torch.autocast("cpu", torch.bfloat16), torch.enable_grad,
])  # fmt: skip
@pytest.mark.parametrize("default", [torch.float32, torch.float64])
def test_a_trial_neither_sees_nor_changes_what_the_caller_is_in(enter, default):
    layer, lstm, x = FastWeightsRNN(5, 7), AssociativeLSTM(5, 6), torch.randn(6, 3, 5)
    torch.set_default_dtype(default)
    try:
        with enter():
            rng = torch.get_rng_state()
            modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
            assert layer.form(x) == "numba"
            layer(x)
            lstm(x)
            assert torch.equal(rng, torch.get_rng_state())
            assert modes == (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
            assert torch.get_default_dtype() == default
            assert trial._passed and not trial._failed
    finally:
        torch.set_default_dtype(torch.float32)


def associative_results(lstm, x):
    output, state = lstm(x)
    return [output, *state, *torch.autograd.grad(output.sum(), list(lstm.parameters()))]


@pytest.mark.parametrize("which", [0, 1], ids=["forward", "backward"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_associative_lstm_does_without_wrong_loops(monkeypatch, which, dtype):
    lstm, x = AssociativeLSTM(5, 6).to(dtype), torch.randn(4, 3, 5, dtype=dtype)
    right = associative_results(lstm, x)
    assert trial._passed
    trial._passed.clear()
    run = associative._Plan.run

    def wrong(plan, step, *tensors):
        run(plan, step, *tensors)
        if step == which:
            tensors[-1].mul_(1.05)  # h, or the gradient of the affine map

    monkeypatch.setattr(associative._Plan, "run", wrong)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = [associative_results(lstm, x) for _ in range(2)]
    (warning,) = caught
    assert "kernel 'associative LSTM' does not work on this CPU" in str(warning.message)
    for one, other in zip(found[0], right, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_associative_lstm_does_without_loops_that_do_not_compile(monkeypatch):
    cpu.compiled.cache_clear()
    failing(monkeypatch, TypeError("no such CPU"), name="_build")
    lstm, x = AssociativeLSTM(5, 6), torch.randn(4, 3, 5)
    with pytest.warns(UserWarning, match="no such CPU") as caught:
        for _ in range(2):
            lstm(x)
    assert len(caught) == 1


@pytest.mark.parametrize("sizes", [(2, 1, 1), (6, 4, 3), (100, 2, 1)])
def test_right_associative_loops_pass_at_any_size(sizes):
    AssociativeLSTM(5, *sizes)(torch.randn(4, 3, 5))
    assert trial._passed and not trial._failed


def test_the_choice_knows_of_lengths_and_memory(monkeypatch):
    variants = []
    monkeypatch.setattr(operators, "works", lambda *arguments: variants.append(arguments[-1]))
    monkeypatch.setattr(cpu, "variant", kernels.operators.gpu.variant)
    layer, x = FastWeightsRNN(5, 7, inner_steps=2), torch.randn(6, 3, 5)
    layer.form(x)
    layer.form(torch.nn.utils.rnn.pack_sequence([x[:, 0], x[:3, 1]]), layer(x[:, :2])[1])
    common = 7, True, layer.read_weight_l0 is not None, 2, "tanh", "sustained", "candidate"
    assert variants[0] == (common[0], False, False, *common[1:])
    assert variants[-1] == (common[0], True, True, *common[1:])
