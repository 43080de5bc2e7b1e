"""The recurrence as an operator: what PyTorch's own checks, compilers and exporters make of it."""

import io
import sys
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.multiprocessing
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.parallel import DistributedDataParallel
from torch.utils.tensorboard import SummaryWriter

from fwrnn import FastWeightsRNN, FastWeightsRNNCell
from fwrnn.layers import MultiLevelFastWeights, kernels
from fwrnn.layers.kernels import BACKENDS
from tests.layers.test_fast_weights import clone, layer, tensors

ANY = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}


@pytest.mark.parametrize("form", ["matrix", "attention", "numba"])
@pytest.mark.parametrize("steps", [3, 60], ids="{} steps".format)
@pytest.mark.parametrize("given", [[], ["norm", "read"], ["memory", "lengths", "norm", "read"]],
                         ids="+".join)  # fmt: skip
@pytest.mark.parametrize("save", [True, False], ids=["training", "inference"])
def test_pytorch_finds_no_fault_in_the_operator(form, steps, given, save):
    def random(name: str, *shape: int) -> Tensor | None:
        if name and name not in given:
            return None
        return (0.3 * torch.randn(*shape, dtype=torch.float64)).requires_grad_(save)

    arguments = (
        random("", steps, 2, 4), random("", 2, 4), random("memory", 2, 4, 4), random("", 4, 4),
        random("norm", 4), random("norm", 4), random("read", 4),
        torch.tensor([steps, 2]) if "lengths" in given else None,
        form, 0.9, 0.1, 2, "tanh", "sustained", "candidate", False, save,
    )  # fmt: skip
    torch.library.opcheck(torch.ops.fwrnn.recurrence, arguments)


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_compiles_once_for_all_lengths_and_batches(backend):
    torch._dynamo.reset()
    made = FastWeightsRNN(5, 7, backend=backend)
    compiled = torch.compile(made, fullgraph=True, dynamic=True, backend="aot_eager")
    compiled(torch.randn(6, 3, 5))[0].sum().backward()
    with torch.compiler.set_stance("fail_on_recompile"):
        for steps, batch in ((2, 2), (9, 4), (60, 3)):
            x = torch.randn(steps, batch, 5)
            made.zero_grad()
            output, state = compiled(x)
            (output.sin().sum() + state.memory.matrix().sin().sum()).backward()
            found = [p.grad.clone() for p in made.parameters()]
            made.zero_grad()
            wanted, last = made(x)
            (wanted.sin().sum() + last.memory.matrix().sin().sum()).backward()
            torch.testing.assert_close(output, wanted, rtol=1e-4, atol=1e-5)
            for one, parameter in zip(found, made.parameters(), strict=True):
                torch.testing.assert_close(one, parameter.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_compiled_cell_takes_its_steps():
    torch._dynamo.reset()
    cell = FastWeightsRNNCell(3, 4)
    compiled = torch.compile(cell, fullgraph=True, backend="aot_eager")
    found = wanted = None
    for x in torch.randn(7, 2, 3):  # past as many steps as units
        found, wanted = compiled(x, found), cell(x, wanted)
        torch.testing.assert_close(tensors(found), tensors(wanted))


def test_a_recorded_program_holds_the_operator():
    made = FastWeightsRNN(5, 7)
    x = torch.randn(6, 3, 5)
    with torch.no_grad():
        program = make_fx(lambda x: made(x)[0])(x)
        assert "fwrnn.recurrence" in program.code
        x = torch.randn(6, 3, 5)
        torch.testing.assert_close(program(x), made(x)[0])


class Flat(nn.Module):
    """The layer with its state as tensors that anyone can name."""

    def __init__(self, inner: FastWeightsRNN):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        output, state = self.inner(x)
        return output, *tensors(state)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("settings", [
    {"num_layers": 2, "bidirectional": True, "inner_steps": 2},
    {"nonlinearity": "relu", "read_gain": "fixed", "boundary": "identity", "backend": "numba"},
], ids=str)  # fmt: skip
def test_onnxruntime_repeats_the_numbers(tmp_path, settings):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    made = Flat(FastWeightsRNN(3, 4, **settings))
    for name, parameter in made.named_parameters():
        if "read_weight" in name:
            nn.init.constant_(parameter, 0.5)
    torch.onnx.export(
        made, (torch.randn(5, 2, 3),), dynamo=True, dynamic_shapes=(ANY,), verbose=False
    ).save(tmp_path / "layer.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "layer.onnx")
    for shape in ((5, 2, 3), (1, 1, 3), (17, 4, 3)):
        x = torch.randn(shape)
        with torch.no_grad():
            wanted = made(x)
        found = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_attention_and_the_multilevel_layer_can_be_traced_with_a_state():
    layer, levels = FastWeightsRNN(3, 4), MultiLevelFastWeights(3, 4)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    x, given = torch.randn(5, 2, 3), layer(torch.randn(7, 2, 3))[1].detach()
    for start in (layer.initial_state(2), given):
        traced = torch.jit.trace_module(layer, {"attention": (x, start)}, check_trace=False)
        torch.testing.assert_close(traced.attention(x[:4], given), layer.attention(x[:4], given))
    region = torch.randn(levels.fine + 2, 2, 3)
    state = levels(region)[1].detach()
    traced = torch.jit.trace(levels, (region, state), check_trace=False)
    torch.testing.assert_close(traced(region, state)[0], levels(region, state)[0])


@pytest.mark.filterwarnings("ignore")
def test_the_exporter_that_traces_is_told_to_give_way():
    with pytest.raises(RuntimeError, match="use dynamo=True"):
        torch.onnx.export(FastWeightsRNN(3, 4), (torch.randn(5, 2, 3),), io.BytesIO(), dynamo=False)


@pytest.mark.filterwarnings("ignore")
def test_an_exported_program_says_that_it_has_no_gradients():
    program = torch.export.export(FastWeightsRNN(3, 4), (torch.randn(5, 2, 3),)).module()
    with pytest.raises(RuntimeError, match="does not require grad"):
        program(torch.randn(5, 2, 3))[0].sum().backward()


@pytest.mark.filterwarnings("ignore")
def test_an_exported_program_can_be_saved():
    made, x, file = FastWeightsRNN(3, 4), torch.randn(2, 3), io.BytesIO()
    torch.export.save(torch.export.export(made, (x,)), file)
    file.seek(0)
    (_, found), (_, wanted) = torch.export.load(file).module()(x), made(x)
    torch.testing.assert_close(found.hidden, wanted.hidden)
    torch.testing.assert_close(found.memory.matrix(), wanted.memory.matrix())


OPEN = torch.export.Dim.DYNAMIC


def test_what_one_export_leaves_open_is_not_assumed_by_the_next():
    made, x = FastWeightsRNN(3, 4).requires_grad_(False), torch.randn(5, 2, 3)
    for sizes in ({1: OPEN}, {0: OPEN, 1: OPEN}):
        program = torch.export.export(made, (x,), dynamic_shapes=(sizes,)).module()
        longer = torch.randn([7 if k in sizes else x.shape[k] for k in range(3)])
        torch.testing.assert_close(program(longer)[0], made(longer)[0])


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a C++ compiler, and OpenMP")
def test_inductor_makes_a_library_of_it(tmp_path):
    made, x = FastWeightsRNN(3, 4).requires_grad_(False), torch.randn(5, 2, 3)
    program = torch.export.export(made, (x,), dynamic_shapes=({0: OPEN, 1: OPEN},))
    package = torch._inductor.aoti_compile_and_package(program, package_path=f"{tmp_path}/x.pt2")
    longer = torch.randn(8, 9, 3)
    found = torch._inductor.aoti_load_package(package)(longer)[0]
    torch.testing.assert_close(found, made(longer)[0])


def test_a_sharded_layer_takes_the_state_that_it_gives_to_begin_with(tmp_path):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    where = f"file://{tmp_path}/store"
    torch.distributed.init_process_group("gloo", init_method=where, rank=0, world_size=1)
    try:
        made, x = FastWeightsRNN(3, 4), torch.randn(5, 2, 3)
        wanted = made(x)[0]
        fully_shard(made, mesh=init_device_mesh("cpu", (1,)))
        torch.testing.assert_close(made(x, made.initial_state(2))[0], wanted)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_draws_its_graph(tmp_path):
    with SummaryWriter(tmp_path) as writer:
        writer.add_graph(FastWeightsRNN(3, 4), torch.randn(5, 2, 3))
    assert any(file.stat().st_size > 1000 for file in tmp_path.iterdir())


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_padding_that_would_explode_changes_nothing(backend):
    settings = {"nonlinearity": "relu", "layer_norm": False, "bias": False, "fast_lr": 0.5}
    made = FastWeightsRNN(3, 4, **settings, backend=backend, dtype=torch.float64)
    for parameter in made.parameters():
        nn.init.uniform_(parameter, 0, 1)
    long, short = torch.zeros(60, 3).double(), torch.full((2, 3), 3.0).double()
    _, state = made(nn.utils.rnn.pack_sequence([long, short]))
    (state.hidden.sum() + state.memory.matrix().sum()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in made.parameters())
    found = [parameter.grad.clone() for parameter in made.parameters()]
    made.zero_grad()
    _, alone = made(short)
    torch.testing.assert_close(tensors(alone), tensors(state.index_batch(1)))
    (alone.hidden.sum() + alone.memory.matrix().sum()).backward()
    for one, parameter in zip(found, made.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad)


@pytest.mark.parametrize("backend", ["matrix", "attention", "numba"])
def test_gradients_do_not_see_what_padding_holds(backend):
    made = layer(3, 4, backend=backend)
    results = []
    for padding in (0.0, float("nan")):
        x = torch.full((5, 2, 3), padding, dtype=torch.float64)
        x[:, 0] = x[:2, 1] = 0.5
        packed = nn.utils.rnn.PackedSequence(x.flatten(0, 1), torch.tensor([2] * 5))
        sequence, lengths, _ = made._time_first(packed)
        made.zero_grad()
        states, _, memory = kernels.recurrence(
            sequence, made._weights("_l0")[0], x.new_zeros(2, 4), None,
            made._weights("_l0")[1], made.rule, torch.tensor([5, 2]), backend,
        )  # fmt: skip
        (states.sum() + memory.matrix().sum()).backward()
        results.append([states, made.weight_hh_l0.grad, made.read_weight_l0.grad])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def _train_on_states(spawned: int, file: str, rank: int) -> None:
    """What each of two processes does: gradients must be the mean over both."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{file}", rank=rank, world_size=2, timeout=timedelta(minutes=2)
    )
    torch.manual_seed(0)
    sequences = torch.randn(2, 5, 3, 4)
    for backend in ("auto", *BACKENDS):
        made = FastWeightsRNN(4, 6, 2, backend=backend)
        alone = clone(made)
        wrapped = DistributedDataParallel(made)
        _, state = wrapped(sequences[rank])  # the output, and with it the last drive, unused
        (state.hidden.sum() + state.memory.matrix().sin().sum()).backward()
        for sequence in sequences:
            _, state = alone(sequence)
            (0.5 * (state.hidden.sum() + state.memory.matrix().sin().sum())).backward()
        for one, other in zip(made.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-4)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_share_their_gradients(tmp_path):
    file = str(tmp_path / "meet")
    other = torch.multiprocessing.spawn(_train_on_states, (file, 1), nprocs=1, join=False)
    _train_on_states(0, file, rank=0)
    while not other.join():
        pass
