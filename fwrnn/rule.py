"""The constants of the recurrence, and what its arguments can be; does not import torch.

The layer, its kernels and the command line's schema all take them from here.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral, Real

NONLINEARITIES = ("tanh", "relu")
BOUNDARIES = ("sustained", "identity")
INNER_STARTS = ("candidate", "previous", "normalised")
READ_GAINS = ("unit", "layer", "plain", "fixed")
BACKENDS = ("matrix", "attention", "numba", "triton")


@dataclass(frozen=True)
class Rule:
    """The constants of the recurrence; none of them is learned.

    Raises:
        ValueError: when a constant lies outside its range, with the remedy.
    """

    decay: float = 0.95
    fast_lr: float = 0.5
    inner_steps: int = 1
    nonlinearity: str = "tanh"
    boundary: str = "sustained"
    inner_start: str = "candidate"
    plain_read: bool = False  # of a gain that is learned: it multiplies A h_s as it is

    def __post_init__(self):
        for name in ("decay", "fast_lr", "inner_steps"):
            if not isinstance(getattr(self, name), Real):
                raise ValueError(
                    f"{name} must be a plain number, got {getattr(self, name)!r}; it is a "
                    "constant, not learned"
                )
        if not 0 <= self.decay <= 1:
            raise ValueError(
                f"decay (λ) must lie in [0, 1], got {self.decay}: above 1 the memory explodes; "
                "the paper uses 0.9 to 0.95"
            )
        if not math.isfinite(self.fast_lr):
            raise ValueError(
                f"fast_lr (η) must be a finite number, got {self.fast_lr}; the paper uses 0.5, "
                "and 0 turns the memory off"
            )
        if not isinstance(self.inner_steps, Integral) or self.inner_steps < 0:
            raise ValueError(
                f"inner_steps (S) must be an integer of 0 or more, got {self.inner_steps}; "
                "the paper uses 1"
            )
        for name, kind in (("decay", float), ("fast_lr", float), ("inner_steps", int)):
            object.__setattr__(self, name, kind(getattr(self, name)))  # as compilers take them
        one_of("nonlinearity", self.nonlinearity, NONLINEARITIES)
        one_of("boundary", self.boundary, BOUNDARIES)
        one_of("inner_start", self.inner_start, INNER_STARTS)
        if self.inner_start == "previous" and (
            self.inner_steps == 0 or self.boundary == "identity"
        ):
            raise ValueError(
                "inner_start='previous' needs inner_steps of 1 or more and boundary='sustained', "
                f"got inner_steps={self.inner_steps}, boundary='{self.boundary}': otherwise the "
                "input never reaches the hidden state"
            )


def one_of(name: str, value: object, allowed: Iterable[object]) -> None:
    """Raises ValueError unless ``value``, of the argument ``name``, is among those ``allowed``."""
    if value not in allowed:
        choices = ", ".join(repr(choice) for choice in allowed)
        raise ValueError(f"{name} must be one of {choices}, got {value!r}; choose one of them")
