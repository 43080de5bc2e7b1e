"""The recurrent cores. A core = one function here, one line in ``CORES``, one YAML.

A core maps (T, B, I) to states (…, B, H), the last of which is what the head sees, and to what it
would go on from, as ``torch.nn.RNN`` does.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fwrnn.config import AssociativeLSTMConfig, FastWeightsConfig, MultiLevelConfig, RecurrentConfig
from fwrnn.layers import (
    IRNN,
    AssociativeLSTM,
    FastWeightsRNN,
    FastWeightsState,
    MultiLevelFastWeights,
)
from fwrnn.models import glimpses


def fast_weights(config: FastWeightsConfig, input_size: int) -> nn.Module:
    return FastWeightsRNN(
        input_size,
        config.hidden_size,
        nonlinearity=config.nonlinearity.name,
        decay=config.decay,
        fast_lr=config.fast_lr,
        inner_steps=config.inner_steps,
        layer_norm=config.layer_norm,
        boundary=config.boundary.name,
        inner_start=config.inner_start.name,
        read_gain=config.read_gain.name,
        backend=config.backend.name,
    )


def multilevel(config: MultiLevelConfig, input_size: int) -> nn.Module:
    return MultiLevelFastWeights(
        input_size,
        config.hidden_size,
        fine=glimpses.FINE,
        decay=config.decay,
        fast_lr=config.fast_lr,
        inner_steps=config.inner_steps,
        nonlinearity=config.nonlinearity.name,
        layer_norm=config.layer_norm,
        dropout=config.integration_dropout,
    )


def lstm(config: RecurrentConfig, input_size: int) -> nn.Module:
    return nn.LSTM(input_size, config.hidden_size)


def rnn(config: RecurrentConfig, input_size: int) -> nn.Module:
    return nn.RNN(input_size, config.hidden_size, nonlinearity="relu")


def irnn(config: RecurrentConfig, input_size: int) -> nn.Module:
    return IRNN(input_size, config.hidden_size)


def associative_lstm(config: AssociativeLSTMConfig, input_size: int) -> nn.Module:
    return AssociativeLSTM(input_size, config.hidden_size, config.copies, config.heads)


CORES: dict[str, Callable[..., nn.Module]] = {
    "fast_weights": fast_weights,
    "multilevel": multilevel,
    "lstm": lstm,
    "rnn": rnn,
    "irnn": irnn,
    "associative_lstm": associative_lstm,
}


def state_size(core: nn.Module, input_size: int, steps: int) -> int:
    """How many numbers ``core`` carries on for one sequence."""
    with torch.no_grad():
        _, state = core(next(core.parameters()).new_zeros(steps, 1, input_size))
    if isinstance(state, FastWeightsState):
        state = state.hidden, state.memory.matrix()
    return sum(part.numel() for part in ((state,) if isinstance(state, Tensor) else state))
