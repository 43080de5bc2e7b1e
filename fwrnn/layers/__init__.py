"""Recurrent layers for anyone's code, used like ``torch.nn.RNN``; they import torch only."""

from fwrnn.layers.associative_lstm import AssociativeLSTM, AssociativeLSTMState
from fwrnn.layers.fast_weights import FastWeightsRNN, FastWeightsRNNCell, FastWeightsState
from fwrnn.layers.irnn import IRNN
from fwrnn.layers.multilevel import MultiLevelFastWeights

__all__ = [
    "AssociativeLSTM",
    "AssociativeLSTMState",
    "FastWeightsRNN",
    "FastWeightsRNNCell",
    "FastWeightsState",
    "IRNN",
    "MultiLevelFastWeights",
]
