"""How slow weights start: the paper's way, for every model, and the default layer's.

"Recurrent weights W = 0.05 I (fast weights) or 0.5 I (IRNN), all other slow weights uniform in
±1/√H, with H the number of outgoing weights" (arXiv:1610.06258v3, section 4). A weight matrix of
shape (out, in) gives each of its inputs ``out`` outgoing weights. The paper does not speak of
biases: they are drawn like the weights beside them, as in ``torch.nn.RNN``.

Under layer normalisation that leaves the inputs small beside the biases and what is read, the
smaller the more units there are. A layer whose read is learned therefore starts with inputs as
large as they came (``normal_incoming_``), and finds how much of the memory to add.
"""

import math

import torch
from torch import Tensor, nn

FAST_WEIGHTS_SCALE = 0.05
IRNN_SCALE = 0.5


def scaled_identity_(weight: Tensor, scale: float) -> Tensor:
    """Set a square matrix to ``scale`` · I, in place."""
    with torch.no_grad():
        weight.zero_().diagonal().fill_(scale)
    return weight


def uniform_outgoing_(weight: Tensor) -> Tensor:
    """Draw a weight (out, in) or its bias (out) uniformly from ±1/√out, in place."""
    bound = 1 / math.sqrt(weight.shape[0])
    return nn.init.uniform_(weight, -bound, bound)


def normal_incoming_(weight: Tensor) -> Tensor:
    """Draw a weight (out, in) from N(0, 1/in), in place: inputs of variance 1 give outputs of 1."""
    return nn.init.normal_(weight, std=1 / math.sqrt(weight.shape[1]))


def linear(in_features: int, out_features: int) -> nn.Linear:
    """An ``nn.Linear`` that starts as the paper's slow weights do."""
    layer = nn.Linear(in_features, out_features)
    uniform_outgoing_(layer.weight)
    uniform_outgoing_(layer.bias)
    return layer
