"""A task, a model and a device from a configuration; what every command starts with."""

import torch

from fwrnn.config import Config
from fwrnn.errors import UserError
from fwrnn.interfaces import SupervisedTask
from fwrnn.models import SequenceClassifier, build_model
from fwrnn.tasks import build_task


def assemble(config: Config) -> tuple[SupervisedTask, SequenceClassifier, torch.device]:
    """Build what a configuration describes; the model's first weights come from its seed.

    Raises:
        UserError: a setting that the task, the model or this machine does not take.
    """
    device = choose_device(config.device)
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    try:
        task = build_task(config.task, config.seed)
    except ValueError as error:
        raise UserError(f"task.{error}") from error
    try:
        model = build_model(config.model, task.spec)
    except ValueError as error:
        raise UserError(f"model.{error}") from error
    return task, model.to(device), device


def choose_device(name: str) -> torch.device:
    """The device called ``name``; "auto" is CUDA where there is one, else the CPU.

    Raises:
        UserError: this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0][:120]
        raise UserError(
            f"device '{name}' cannot be used here ({reason}); device=cpu always can"
        ) from error
    return device
