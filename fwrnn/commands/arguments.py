"""Ordinary options, for the commands that are not configured by Hydra."""

import argparse
import math
from contextlib import suppress

from fwrnn.errors import UserError


def positive(word: str) -> int:
    """The type of an option that counts something."""
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of 1 or more, got '{word}'")
    return int(word)


def rate(word: str) -> float:
    """The type of an option that is a learning rate."""
    with suppress(ValueError):
        if 0 < float(word) < math.inf:
            return float(word)
    raise argparse.ArgumentTypeError(f"must be a number above 0, got '{word}'")


class Parser(argparse.ArgumentParser):
    """An ``ArgumentParser`` whose complaint is one line that names the command's help."""

    def error(self, message: str):
        raise UserError(f"{message}; see {self.prog} --help")
