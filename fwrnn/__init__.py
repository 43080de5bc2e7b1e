"""Fast weights: "Using Fast Weights to Attend to the Recent Past", to run, check and build on.

``from fwrnn import FastWeightsRNN, FastWeightsRNNCell, FastWeightsState``

``fwrnn.load("retrieval")("c9k8j3f1??c")`` asks a trained network: one that ships, or a run's.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what is imported below when it is asked for, for those who only read
    from fwrnn.layers import FastMemory, FastWeightsRNN, FastWeightsRNNCell, FastWeightsState
    from fwrnn.learning.trained import load

__version__ = "0.1.0"
__all__ = [
    "FastMemory", "FastWeightsRNN", "FastWeightsRNNCell", "FastWeightsState", "__version__", "load",
]  # fmt: skip


def __getattr__(name: str):
    """Import the layers or ``load``, and with them torch, when they are first asked for.

    The command line imports this package too, and its help must not wait for torch.
    """
    if name in __all__:
        module = "fwrnn.learning.trained" if name == "load" else "fwrnn.layers"
        return getattr(import_module(module), name)
    raise AttributeError(f"module 'fwrnn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
