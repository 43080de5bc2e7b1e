"""A task, a model and a device from a configuration; what every command starts with."""

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from fwrnn.commands.composition import read_config
from fwrnn.config import Config
from fwrnn.errors import UserError
from fwrnn.interfaces import Task, is_game
from fwrnn.models import Network, build_model
from fwrnn.tasks import build_task
from fwrnn.training.a3c import A3CTrainer
from fwrnn.training.actor_critic import A2CTrainer
from fwrnn.training.loop import Trainer
from fwrnn.training.run_folder import RunFolder
from fwrnn.training.supervised import SupervisedTrainer

TRAINERS: dict[str, Callable[..., Trainer]] = {
    "supervised": SupervisedTrainer,
    "a2c": A2CTrainer,
    "a3c": A3CTrainer,
}


class Assembly(NamedTuple):
    """What a configuration describes, built."""

    config: Config
    task: Task
    model: Network
    device: torch.device


def assemble(config: Config) -> Assembly:
    """Build what a configuration describes; the model's first weights come from its seed.

    Raises:
        UserError: a setting that the task, the model or this machine does not take.
    """
    shares_memory = getattr(config.trainer, "name", None) == "a3c"
    device = choose_device("cpu" if shares_memory and config.device == "auto" else config.device)
    keep_freed_memory()
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    try:
        task = build_task(config.task, config.seed)
    except ValueError as error:
        raise UserError(f"task.{error}") from error
    try:
        model = build_model(config.model, task.spec)
        return Assembly(config, task, model.to(device), device)
    except ValueError as error:
        raise UserError(f"model.{error}") from error
    except (MemoryError, RuntimeError) as error:  # torch says a lack of memory by the latter
        reason = str(error).strip().splitlines()[0][:120]
        raise UserError(
            f"the model cannot be made here ({reason}); choose a smaller one"
        ) from error


def build_trainer(
    config: Config, task: Task, model: Network, device: torch.device, folder: RunFolder
) -> Trainer:
    """The trainer that a configuration names.

    Raises:
        UserError: it is not for this kind of task, or does not take one of its settings.
    """
    name, played = config.trainer.name, is_game(task)
    if played != (name != "supervised"):
        fitting = "a2c or a3c" if played else "supervised"
        raise UserError(
            f"trainer={name} is not for task {config.task.name}; choose trainer={fitting}"
        )
    return TRAINERS[name](model, task, config.trainer, config.seed, device, folder)


def load_run(
    run: str | Path, device: str | None = None, data_dir: str | None = None
) -> tuple[Assembly, int]:
    """A trained model, rebuilt from its folder with its best weights, and their update.

    ``data_dir`` and ``device`` take the place of those that the run was configured with.

    Raises:
        UserError: no such run, a configuration or checkpoint that is broken, or a ``data_dir`` for
            a task that reads no data.
    """
    folder = RunFolder(run)
    try:
        config = read_config(folder.read_config(), groups=("task", "model"))
    except UserError as error:
        raise UserError(f"{run}: {error}") from error
    if device is not None:
        config.device = device
    if data_dir is not None:
        if not hasattr(config.task, "data_dir"):
            raise UserError(f"task {config.task.name} reads no data: leave --data-dir out")
        config.task.data_dir = data_dir
    assembly = assemble(config)
    best = folder.read_checkpoint(folder.best, assembly.device)
    try:
        assembly.model.load_state_dict(best["model"])
        return assembly, best["update"]
    except (KeyError, TypeError, AttributeError, RuntimeError):
        raise UserError(f"{folder.best} does not fit the model of {folder.config}") from None


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
    """The device called ``name``; "auto" is CUDA where there is one, else the CPU.

    Raises:
        UserError: this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps", "xpu") or name.startswith("cpu:"):
            raise RuntimeError("known are cpu, cuda, cuda:1, mps and xpu")
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0][:120]
        raise UserError(
            f"device '{name}' cannot be used here ({reason}); device=cpu always can"
        ) from error
    return device
