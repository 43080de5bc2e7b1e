"""What is learned. A task = one file here, one YAML in ``conf/task``, one line in ``TASKS``."""

from collections.abc import Callable
from dataclasses import asdict
from enum import Enum

from fwrnn.interfaces import Task
from fwrnn.tasks.assoc_retrieval import AssocRetrieval
from fwrnn.tasks.catch import Catch
from fwrnn.tasks.facial_expression import FacialExpression
from fwrnn.tasks.mnist_glimpses import MnistGlimpses

TASKS: dict[str, Callable[..., Task]] = {
    "assoc_retrieval": AssocRetrieval,
    "mnist_glimpses": MnistGlimpses,
    "facial_expression": FacialExpression,
    "catch": Catch,
}


def build_task(config, seed: int) -> Task:
    """The task that a configuration (a dataclass of ``fwrnn.config``) describes.

    Raises:
        ValueError: a setting out of range.
        UserError: its data are missing or broken.
    """
    settings = {k: v.name if isinstance(v, Enum) else v for k, v in asdict(config).items()}
    return TASKS[settings.pop("name")](**settings, seed=seed)
