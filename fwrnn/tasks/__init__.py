"""What is learned. A task = one file here, one YAML in ``conf/task``, one line in ``TASKS``."""

from collections.abc import Callable
from dataclasses import asdict

from fwrnn.interfaces import SupervisedTask
from fwrnn.tasks.assoc_retrieval import AssocRetrieval

TASKS: dict[str, Callable[..., SupervisedTask]] = {"assoc_retrieval": AssocRetrieval}


def build_task(config, seed: int) -> SupervisedTask:
    """The task that a configuration (a dataclass of ``fwrnn.config``) describes.

    Raises:
        ValueError: a setting out of range.
    """
    settings = asdict(config)
    return TASKS[settings.pop("name")](**settings, seed=seed)
