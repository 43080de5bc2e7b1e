"""Which letter came first? "qxbz" → q."""

from dataclasses import dataclass

from fwrnn.config import at_least
from fwrnn.tasks.schema import TaskConfig


@dataclass
class RecallFirst(TaskConfig):
    """The keys of ``task=recall_first``; torch is imported when the task is built."""

    length: int
    train_size: int

    kind, shows = "supervised", "symbols"

    def build(self, seed: int) -> "Letters":
        at_least(1, "length", self.length)
        return Letters(self.length, self.train_size, seed)


class Letters:
    """What ``fwrnn.interfaces.SupervisedTask`` promises: the same split is always the same."""

    resample, held_out = False, True

    def __init__(self, length: int, train_size: int, seed: int):
        from fwrnn.interfaces import Symbols, TaskSpec

        self.length, self.seed = length, seed
        self.sizes = {"train": train_size, "val": 500, "test": 500}
        self.spec = TaskSpec(Symbols(vocabulary=26), labels=tuple("abcdefghijklmnopqrstuvwxyz"))

    def split(self, name: str, epoch: int = 0):
        import numpy as np
        import torch

        from fwrnn.interfaces import Examples

        draw = np.random.default_rng([self.seed, list(self.sizes).index(name)])
        letters = torch.from_numpy(draw.integers(0, 26, (self.sizes[name], self.length)))
        return Examples(letters, letters[:, 0].clone())

    def decode(self, sequence) -> str:
        return "".join(self.spec.labels[letter] for letter in sequence.tolist())
