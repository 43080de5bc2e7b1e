"""The recurrent cores. A core = one function here, one line in ``CORES``, one YAML.

A core maps (T, B, I) to (T, B, H) and a state, as ``torch.nn.RNN`` does.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fwrnn.config import AssociativeLSTMConfig, FastWeightsConfig, ModelConfig
from fwrnn.layers import IRNN, AssociativeLSTM, FastWeightsRNN


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
        backend=config.backend.name,
    )


def lstm(config: ModelConfig, input_size: int) -> nn.Module:
    return nn.LSTM(input_size, config.hidden_size)


def irnn(config: ModelConfig, input_size: int) -> nn.Module:
    return IRNN(input_size, config.hidden_size)


def associative_lstm(config: AssociativeLSTMConfig, input_size: int) -> nn.Module:
    return AssociativeLSTM(input_size, config.hidden_size, config.copies, config.heads)


CORES: dict[str, Callable[..., nn.Module]] = {
    "fast_weights": fast_weights,
    "lstm": lstm,
    "irnn": irnn,
    "associative_lstm": associative_lstm,
}


def state_size(core: nn.Module, input_size: int) -> int:
    """How many numbers ``core`` carries from step to step for one sequence."""
    with torch.no_grad():
        _, state = core(next(core.parameters()).new_zeros(1, 1, input_size))
    return sum(part.numel() for part in ((state,) if isinstance(state, Tensor) else state))
