"""What is otherwise where there is a GPU, seen without one."""

import logging
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import fwrnn
from fwrnn import cli
from fwrnn.benchmarks import machine
from fwrnn.commands import train
from fwrnn.learning import assembly
from fwrnn.learning.supervised.trainer import MovingAverage
from tests.commands.compose import compose
from tests.conftest import TINY


@pytest.fixture
def gpu(monkeypatch):
    """Models are said to be on a GPU, and stay where they are."""
    monkeypatch.setattr(assembly, "choose_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(nn.Module, "to", lambda self, *_: self)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)


def test_auto_does_without_a_gpu_that_does_not_work(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: _raise(RuntimeError("busy\nand more")))
    with caplog.at_level(logging.WARNING):
        assert assembly.choose_device("auto") == torch.device("cpu")
    (record,) = caplog.records
    said = "device 'cuda' cannot be used here (busy): the CPU takes its place"
    assert record.getMessage() == said


def _raise(error: Exception):
    raise error


FULL = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 …\nand so on"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]


@pytest.mark.parametrize("error", FULL, ids=str)
def test_a_full_gpu_is_one_line(error, monkeypatch, capsys):
    monkeypatch.setattr(cli, "_dispatch", lambda argv: _raise(error))
    assert cli.main(["train"]) == 1
    said = capsys.readouterr().err
    assert "the GPU is full (" in said and "GiB" not in said
    assert len(said.splitlines()) == 1 and "fwrnn train resume=RUN" in said


def test_other_faults_of_a_gpu_are_told_in_full(monkeypatch):
    monkeypatch.setattr(cli, "_dispatch", lambda argv: _raise(RuntimeError("illegal access")))
    with pytest.raises(RuntimeError):
        cli.main(["train"])


@pytest.mark.parametrize("error", FULL, ids=str)
def test_a_full_gpu_says_nothing_of_the_run(error, monkeypatch, tmp_path):
    config = compose(*TINY, "trainer.max_updates=1")
    train.train(config, tmp_path)
    monkeypatch.setattr("fwrnn.learning.supervised.trainer.SupervisedTrainer.load",
                        lambda self, content: _raise(error))  # fmt: skip
    with pytest.raises(RuntimeError, match="out of memory|ALLOC_FAILED"):
        train.train(config, tmp_path, resume=True)
    monkeypatch.setattr(nn.Module, "load_state_dict", lambda *_: _raise(error))
    with pytest.raises(RuntimeError, match="out of memory|ALLOC_FAILED"):
        assembly.load_run(tmp_path)


def test_networks_are_loaded_where_precision_was_set_in_the_newer_way():
    words = "import torch, fwrnn; torch.backends.cudnn.rnn.fp32_precision = 'ieee'"
    words += "; fwrnn.load('retrieval'); print(torch.backends.cudnn.rnn.fp32_precision)"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True)
    assert done.stdout.strip() == "ieee", done.stderr


def test_all_networks_compute_in_full_float32_and_those_that_are_loaded_change_nothing(gpu):
    torch.manual_seed(123)
    fwrnn.load("retrieval")
    assert torch.backends.cudnn.allow_tf32 and torch.initial_seed() == 123
    assembly.assemble(compose(*TINY, "model=lstm"))
    assert not torch.backends.cudnn.allow_tf32


def test_a_network_that_is_loaded_leaves_the_seed_of_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    seeds, seed = [], torch.cuda.manual_seed_all
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda n: (seeds.append(n), seed(n)))
    torch.manual_seed(123)
    fwrnn.load("retrieval")
    assert seeds[-1] == 123


@pytest.mark.parametrize(("words", "device"), [([], "cpu"), (["device=cuda"], "cuda")])
def test_jobs_at_once_leave_the_gpu_alone_unless_they_are_told(
    words, device, monkeypatch, tmp_path
):
    trained = []
    monkeypatch.setattr(train, "train", lambda config, *_, **__: trained.append(config) or {})
    monkeypatch.setattr(train, "objective", lambda *_: 0.0)
    monkeypatch.setattr(train, "read_config", lambda config: config)
    job = SimpleNamespace(config=compose(*TINY, *words), folder=tmp_path, among_others=True)
    train._start_or_go_on(job, done=False)
    assert [config.device for config in trained] == [device]


def test_the_copy_that_is_averaged_is_in_one_piece(monkeypatch):
    put_together = []
    network = nn.Sequential(nn.LSTM(2, 3), nn.RNN(3, 3))
    monkeypatch.setattr(nn.RNNBase, "flatten_parameters", lambda rnn: put_together.append(rnn))
    average = MovingAverage(network, 0.9)
    assert put_together == list(average.module)


def test_memory_that_is_kept_for_reuse_is_free(monkeypatch):
    for name, value in (("mem_get_info", (100, 400)), ("memory_reserved", 70),
                        ("memory_allocated", 20)):  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert machine.free_memory(torch.device("cuda")) == 150
