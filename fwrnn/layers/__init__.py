"""Recurrent layers for anyone's code, used like ``torch.nn.RNN``; they import torch only."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what is imported below when it is asked for, for those who only read
    from fwrnn.layers.associative_lstm import AssociativeLSTM, AssociativeLSTMState
    from fwrnn.layers.fast_weights import FastWeightsRNN, FastWeightsRNNCell
    from fwrnn.layers.irnn import IRNN
    from fwrnn.layers.memory import FastMemory, FastWeightsState
    from fwrnn.layers.multilevel import MultiLevelFastWeights

__all__ = [
    "AssociativeLSTM",
    "AssociativeLSTMState",
    "FastMemory",
    "FastWeightsRNN",
    "FastWeightsRNNCell",
    "FastWeightsState",
    "IRNN",
    "MultiLevelFastWeights",
]
_FILES = ("associative_lstm", "fast_weights", "irnn", "memory", "multilevel")


def __getattr__(name: str):
    """Import the layers, and with them torch, when one is first asked for: ``rule`` needs none."""
    if name in __all__:
        modules = (import_module(f"fwrnn.layers.{file}") for file in _FILES)
        return next(getattr(module, name) for module in modules if hasattr(module, name))
    raise AttributeError(f"module 'fwrnn.layers' has no attribute {name!r}")
