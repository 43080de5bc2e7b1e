"""A task, a model and a device from a configuration; what every command starts with."""

import ctypes
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from fwrnn.config import Config, changed, migrated, read_config
from fwrnn.errors import UserError, is_full
from fwrnn.interfaces import Task
from fwrnn.learning.kinds import Kind, kind_of
from fwrnn.learning.run_folder import RunFolder
from fwrnn.learning.shipped import place_of
from fwrnn.machine import memory
from fwrnn.models.network import Network

log = logging.getLogger(__name__)


class Assembly(NamedTuple):
    """What a configuration describes, built."""

    config: Config
    kind: Kind
    task: Task
    model: Network
    device: torch.device


class Misfit(UserError):
    """Weights that are not of the model that a configuration describes."""


def assemble(config: Config, sizes: dict[str, torch.Size] | None = None) -> Assembly:
    """Build what a configuration describes; the model's first weights come from its seed.

    ``sizes`` are those that the model is to have, by the names of its ``state_dict``.

    Raises:
        UserError: a setting that the task, the model or this machine does not take.
        Misfit: the model has other sizes; it has not been made.
    """
    on_cpu = getattr(config.trainer, "cpu_only", False) and config.device == "auto"
    device = choose_device("cpu" if on_cpu else config.device)
    if device.type == "cuda":  # else cuDNN rounds what LSTM and IRNN multiply to 10 bits of 23
        torch.backends.cudnn.allow_tf32 = False
    keep_freed_memory()
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    kind = kind_of(config.task)
    try:
        task = config.task.build(config.seed)
    except ValueError as error:
        raise UserError(f"task.{error}") from error
    try:
        _check_size(kind, config, task, sizes)
        model = kind.network(config.model, task.spec)
        return Assembly(config, kind, task, model.to(device), device)
    except ValueError as error:
        raise UserError(f"model.{error}") from error
    except (MemoryError, RuntimeError, OverflowError, TypeError) as error:  # so torch says it
        reason = str(error).strip().partition("\n")[0][:120]
        raise UserError(
            f"the model cannot be made here ({reason}); choose a smaller one"
        ) from error


def _check_size(kind: Kind, config: Config, task: Task, sizes: dict | None) -> None:
    """Look at the model without its numbers first: what is too large would take all memory.

    Raises:
        Misfit: it does not have the ``sizes``.
        MemoryError: its weights are more than this machine has memory.
    """
    try:
        with torch.device("meta"), _Unfilled():
            outline = kind.network(config.model, task.spec)
    except (RuntimeError, NotImplementedError):  # a core that needs numbers to be made
        return
    weights = outline.state_dict()
    if sizes is not None and sizes != {name: x.shape for name, x in weights.items()}:
        raise Misfit("the weights are of another model than the configuration describes")
    wanted, there = sum(x.nbytes for x in weights.values()), memory()
    if there is not None and wanted > there:
        raise MemoryError(f"it has {wanted / 2**30:,.0f} GiB of weights")


class _Unfilled(TorchFunctionMode):
    """Numbers are not drawn: for those of "meta" PyTorch imports its compiler, which takes long."""

    FILLED = {nn.init.normal_: "tensor", torch.eye: "out"}

    def __torch_function__(self, function, types, arguments=(), options=None):
        options = options or {}
        filled = options.get(self.FILLED.get(function))
        return function(*arguments, **options) if filled is None else filled


NOTHING: Mapping[str, Any] = MappingProxyType({})


def config_of(run: str | Path, changes: Mapping[str, Any] = NOTHING) -> Config:
    """What a run was configured with, as to its task and model; nothing else of it is looked at.

    ``changes`` such as ``{"model.fast_lr": 0.25}`` are other settings than it had.

    Raises:
        UserError: no such run, a configuration that is broken, or a change that it does not take.
    """
    saved = RunFolder(place_of(run)).read_config()
    try:
        saved = migrated(saved)
        config = read_config(saved, groups=("task", "model"))
    except UserError as error:
        raise UserError(f"{run}: {error}") from error
    for key in changes:
        group, _, name = key.partition(".")
        if group not in ("task", "model") or not name:
            raise UserError(
                f"a test takes settings of its model and its task, model.KEY, got '{key}'"
            )
        if name == "name":
            raise UserError(f"{key} only names what was trained; set a key of it")
    if changes:
        config = read_config(changed(saved, changes), groups=("task", "model"))
    return config if "task.cache_dir" in changes else with_own_cache(config)


def with_own_cache(config: Config) -> Config:
    """The saved configuration, which may be a stranger's, with a ``task.cache_dir`` that may be
    written: one that is such a folder here already, else that of whoever runs this."""
    if not is_cache(getattr(config.task, "cache_dir", None)):
        config.task.cache_dir = None
    return config


def is_cache(folder: str | None) -> bool:
    """Whether it holds finished arrays of a task, as it does where somebody trained with it."""
    if folder is None:
        return True  # the user's own
    try:
        return any(Path(folder).expanduser().glob("[0-9a-f]" * 32 + ".npz"))
    except (OSError, RuntimeError, ValueError):  # a home of nobody
        return False


def words_of(changes: Mapping[str, Any]) -> list[str]:
    """As they are set: KEY=VALUE."""
    return [f"{key}={value}" for key, value in changes.items()]


def load_run(
    run: str | Path,
    device: str | None = None,
    data_dir: str | None = None,
    changes: Mapping[str, Any] = NOTHING,
) -> tuple[Assembly, int]:
    """A trained model, rebuilt from its folder with its best weights, and their update.

    ``run`` may be the name of a network that ships, see ``fwrnn.learning.shipped``. ``data_dir``,
    ``device`` and ``changes``, see ``config_of``, take the place of what the run was configured
    with.

    Raises:
        UserError: no such run, a configuration or checkpoint that is broken, a ``data_dir`` for a
            task that reads no data, or a change that the weights do not fit.
    """
    config, folder = config_of(run, changes), RunFolder(place_of(run))
    if device is not None:
        config.device = device
    if data_dir is not None:
        if not hasattr(config.task, "data_dir"):
            raise UserError(f"task {config.task.name} reads no data: leave --data-dir out")
        config.task.data_dir = data_dir
    best = folder.read_checkpoint(folder.best)
    try:
        weights, update = best["model"], best["update"]
        sizes = {name: weight.shape for name, weight in weights.items()}
        assembly = assemble(config, sizes)
        assembly.model.load_state_dict(weights)
    except (Misfit, KeyError, TypeError, AttributeError, RuntimeError) as error:
        if is_full(error):
            raise
        described = " with ".join([str(folder.config), *words_of(changes)])
        raise UserError(f"{folder.best} does not fit the model of {described}") from None
    return assembly, update


@contextmanager
def own_threads() -> Iterator[None]:
    """While open, how many threads a run takes on the CPU is its own affair."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def keep_freed_memory() -> None:
    """Have the C library keep what is freed for the next update; for this whole process.

    glibc by itself returns large blocks to the system and takes them again, page by page, at every
    update: up to a third of the time of one on sequences of 2,000 steps. Other libraries are left
    as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    trim_threshold, mmap_threshold = -1, -3  # the names of malloc.h
    mallopt(mmap_threshold, 1 << 30)
    mallopt(trim_threshold, 2**31 - 1)


def choose_device(name: str) -> torch.device:
    """The device called ``name``; "auto" is CUDA where there is one that works, else the CPU.

    Raises:
        UserError: this machine has no such device.
    """
    if name == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        try:
            return choose_device("cuda")
        except UserError as error:
            log.warning(str(error).partition(";")[0] + ": the CPU takes its place")
            return torch.device("cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps", "xpu") or name.startswith("cpu:"):
            raise RuntimeError("known are cpu, cuda, cuda:1, mps and xpu")
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().partition("\n")[0][:120]
        raise UserError(
            f"device '{name}' cannot be used here ({reason}); the CPU always can: device=cpu, "
            "or --device cpu"
        ) from error
    return device
