"""The errors that end a command with one line instead of a traceback."""

import difflib
from collections.abc import Iterable
from signal import SIGINT


class UserError(Exception):
    """A mistake in what was asked for: exit status 2. ``shown``, whole lines, goes below it."""

    def __init__(self, message: object = "", shown: str = ""):
        super().__init__(message)
        self.shown = shown


class RunFailed(Exception):
    """A run that cannot go on though it was asked for correctly: exit status 1."""


class Interrupted(KeyboardInterrupt):
    """A run stopped from outside after it saved its state: exit status 128 + ``signal``."""

    def __init__(self, message: str, signal: int = SIGINT):  # which a pickle tells afterwards
        super().__init__(message)
        self.signal = signal


def is_full(error: BaseException) -> bool:
    """Whether a GPU had no memory left: PyTorch, Triton and cuBLAS say so in words of their own."""
    if not isinstance(error, RuntimeError):
        return False
    words = "out of memory", "CUBLAS_STATUS_ALLOC_FAILED"
    return type(error).__name__ == "OutOfMemoryError" or any(word in str(error) for word in words)


def printable(text: object) -> str:
    """What somebody else wrote, in one line that steers no terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text))


def suggestion(name: str, options: Iterable[str]) -> str:
    """ ", did you mean 'X'?" for the option nearest to ``name``, or "." when none is near.

    An abbreviation counts as near: it is also compared with each option's beginning.
    """

    def likeness(option: str) -> float:
        return max(
            difflib.SequenceMatcher(None, name, part).ratio()
            for part in (option, option[: len(name) + 1], option.rpartition(".")[2])
        )

    best = max(options, key=likeness, default="")
    return f", did you mean '{best}'?" if best and likeness(best) > 0.6 else "."
