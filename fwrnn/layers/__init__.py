"""Recurrent layers for anyone's code, used like ``torch.nn.RNN``; they import no experiments."""

from fwrnn.layers.associative_lstm import AssociativeLSTM, AssociativeLSTMState
from fwrnn.layers.fast_weights import FastWeightsRNN, FastWeightsRNNCell
from fwrnn.layers.irnn import IRNN
from fwrnn.layers.memory import FastMemory, FastWeightsState
from fwrnn.layers.multilevel import MultiLevelFastWeights

__all__ = [
    "AssociativeLSTM", "AssociativeLSTMState", "FastMemory", "FastWeightsRNN",
    "FastWeightsRNNCell", "FastWeightsState", "IRNN", "MultiLevelFastWeights",
]  # fmt: skip
