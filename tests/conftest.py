"""Seeds, one thread, what is done once for all, and runs small enough to train in a second.

PyTorch is imported where it is used: all wait for pytest-xdist's first process, which runs no test.
"""

import gc
import signal
import sys
from contextlib import contextmanager, nullcontext, suppress
from itertools import product

import pytest
from filelock import FileLock, Timeout

TINY = [
    "model.hidden_size=8",
    "task.train_size=512",
    "task.val_size=128",
    "task.test_size=128",
    "trainer.max_updates=20",
    "trainer.warmup=0",
    "trainer.batch_size=32",
    "trainer.evaluate_every=5",
    "trainer.log_every=5",
    "threads=1",
]


@contextmanager
def uncounted():
    """Without what ``--cov`` does at every line on Python 3.11, which is slow."""
    trace = sys.gettrace()
    if type(trace).__module__ != "coverage":  # a debugger's, or none
        yield
        return
    sys.settrace(None)
    try:
        yield
    finally:
        sys.settrace(trace)


def pytest_collection_modifyitems(items):
    counted = set()
    for item in items:
        function = item.path, item.originalname
        item.is_counted = function not in counted
        counted.add(function)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Python 3.11 counts lines slowly, so only in the first of the cases of a test."""
    with nullcontext() if item.is_counted else uncounted():
        return (yield)


def pytest_collection_finish():
    """Python looks for cycles less often, and not among the million objects of what is imported."""
    gc.freeze()
    gc.set_threshold(20_000)


@pytest.fixture(autouse=True)
def seeded():
    import torch

    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def kernels_are_compiled_once(tmp_path_factory):
    """While one process compiles a kernel, another that needs it compiles the others meanwhile."""
    import torch

    from fwrnn.layers.kernels import cpu

    place, build, ours = tmp_path_factory.getbasetemp().parent, cpu._build, set()
    modules, dtypes = (
        ("cpu_loops", "step_loops", "associative_loops"),
        (torch.float32, torch.float64),
    )

    def build_in_turn(*kernel):
        ours.add(kernel)
        lock = FileLock(place / f"{kernel[0]}.lock")
        with suppress(Timeout), lock.acquire(blocking=False):
            return build(*kernel)
        for other in product(modules, dtypes):
            if other not in ours:
                cpu.compiled(*other)
        with lock:
            return build(*kernel)  # which is on disk now

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "_build", uncounted()(build_in_turn))
        yield


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_interrupts():
    """Also where a shell had the suite ignore it, as what it runs in the background does."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def nothing_waits_for_the_disk():
    """No test turns the machine off."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda file: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def what_hydra_does_is_uncounted():
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    compose = ConfigLoaderImpl.load_configuration
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConfigLoaderImpl, "load_configuration", uncounted()(compose))
        yield


@pytest.fixture
def unpainted(monkeypatch):
    """Pictures are made but for their pixels, which would take half of the time of a tiny run."""
    blank = lambda canvas: setattr(canvas, "renderer", canvas.get_renderer())  # noqa: E731
    monkeypatch.setattr("matplotlib.backends.backend_agg.FigureCanvasAgg.draw", blank)


@pytest.fixture
def tiny(unpainted) -> list[str]:
    """Overrides for a run that takes a second."""
    return list(TINY)
