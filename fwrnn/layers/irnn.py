"""The identity-initialised ReLU network that the paper compares with."""

from torch import nn

from fwrnn.layers.initialization import IRNN_SCALE, scaled_identity_


class IRNN(nn.RNN):
    """``torch.nn.RNN`` with ReLU, starting from W = 0.5·I.

    The paper's scale (arXiv:1610.06258v3, section 4); Le, Jaitly and Hinton (arXiv:1504.00941),
    who proposed the network, start from I. All other weights start as ``nn.RNN``'s do, uniform in
    ±1/√H. Takes ``nn.RNN``'s arguments but ``nonlinearity``.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, nonlinearity="relu", **kwargs)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        for name, parameter in self.named_parameters():
            if name.startswith("weight_hh"):
                scaled_identity_(parameter, IRNN_SCALE)
