"""Which pictures a run shows: some while it learns, some of what came out."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fwrnn.interfaces import Examples, Images, SupervisedTask
from fwrnn.learning.supervised.figures import pixels_of
from fwrnn.learning.supervised.glimpses import GlimpsePicture
from fwrnn.learning.supervised.memory import MemoryPicture
from fwrnn.learning.supervised.mistakes import confusion, draw_confusion, draw_worst
from fwrnn.models.network import Network, has_memory

_EXAMPLES = 3


def while_learning(
    task: SupervisedTask, model: Network, device: torch.device
) -> tuple[str, Callable[[Network], np.ndarray]] | None:
    """A name, and what draws the model at work on a few validation examples as (H, W, 3) bytes.

    None for a model without a memory on a task of symbols, or a task that cannot write its own.
    """
    inputs, targets = (part[:_EXAMPLES] for part in task.split("val"))
    answers = [task.spec.labels[target] for target in targets.tolist()]
    if isinstance(task.spec.inputs, Images):
        return "glimpses", GlimpsePicture(inputs.to(device), answers, task.spec.labels).pixels
    decode = getattr(task, "decode", None)
    if decode is None or not has_memory(model):
        return None
    labels = [decode(sequence) for sequence in inputs]
    picture = MemoryPicture(inputs.to(device), labels, answers, task.spec.labels)
    return "memory", picture.pixels


def of_results(
    task: SupervisedTask, split: str, examples: Examples, logits: Tensor
) -> dict[str, np.ndarray]:
    """Pictures of a tested model by their names: what it confuses and, of images, what it mistook.

    ``examples``, those of the ``split``, and ``logits`` (N, classes) are on the CPU.
    """
    labels = task.spec.labels
    counts = confusion(logits, examples.targets, len(labels))
    pictures = {"confusion": pixels_of(draw_confusion(counts, labels, split))}
    if isinstance(task.spec.inputs, Images):
        worst = draw_worst(examples, logits, labels)
        if worst is not None:
            pictures["mistakes"] = pixels_of(worst)
    return pictures
