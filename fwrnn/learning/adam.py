"""Adam in one fused operator, with the checkpoints of ``torch.optim.Adam``.

The first optimizer of ``torch.optim`` in a process imports PyTorch's compiler, a second that a
short run does not have, and its step spends more time on Python than on a small network's numbers.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

aten = torch.ops.aten
BETAS, EPSILON = (0.9, 0.999), 1e-8


class Adam:
    """``torch.optim.Adam(…, fused=True)``, or ``AdamW`` where there is weight decay, bit for bit.

    Args:
        parameters: what to change.
        lr: the learning rate; that of a group may be set anew before every step.
        weight_decay: of the matrices alone, decoupled from the gradient.

    ``state`` has for each parameter that ever had a gradient the number of steps and the moving
    averages of its gradient and of its square.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0):
        parameters = list(parameters)
        groups = [(parameters, 0.0)]
        if weight_decay:
            matrices = [parameter for parameter in parameters if parameter.ndim > 1]
            vectors = [parameter for parameter in parameters if parameter.ndim <= 1]
            groups = [(matrices, weight_decay), (vectors, 0.0)]
        self.param_groups: list[dict[str, Any]] = [
            {"params": members, "lr": lr, "weight_decay": decay} for members, decay in groups
        ]
        self.state: dict[nn.Parameter, dict[str, Tensor]] = defaultdict(dict)

    def zero_grad(self) -> None:
        for parameter in self._parameters():
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Change every parameter that has a gradient."""
        for group in self.param_groups:
            parameters = [x for x in group["params"] if x.grad is not None]
            if not parameters:
                continue
            states = [self.state_of(parameter) for parameter in parameters]
            steps = [state["step"] for state in states]
            aten._foreach_add_.Scalar(steps, 1)
            update = aten._fused_adamw_ if group["weight_decay"] else aten._fused_adam_
            update(
                parameters,
                [parameter.grad for parameter in parameters],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                steps,
                lr=group["lr"],
                beta1=BETAS[0],
                beta2=BETAS[1],
                weight_decay=group["weight_decay"],
                eps=EPSILON,
                amsgrad=False,
                maximize=False,
            )

    def state_of(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """The state of a parameter, made when it is first asked for."""
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter, requires_grad=False)
            state["exp_avg_sq"] = torch.zeros_like(parameter, requires_grad=False)
        return state

    def state_dict(self) -> dict[str, Any]:
        """As ``torch.optim`` has it: parameters by their numbers."""
        numbers = {parameter: k for k, parameter in enumerate(self._parameters())}
        groups = [
            {**group, "params": [numbers[parameter] for parameter in group["params"]]}
            for group in self.param_groups
        ]
        state = {numbers[parameter]: state for parameter, state in self.state.items()}
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, content: dict[str, Any]) -> None:
        """Go back to the averages of ``state_dict()``, or of that of ``torch.optim``'s Adam.

        Rates and decays stay what they are.

        Raises:
            ValueError: it is of other parameters.
        """
        sizes = [len(group["params"]) for group in content["param_groups"]]
        if sizes != [len(group["params"]) for group in self.param_groups]:
            raise ValueError("the optimizer's state is of other groups of parameters")
        parameters = list(self._parameters())
        self.state.clear()
        for number, state in content["state"].items():
            parameter = parameters[number]
            shapes = [state[name].shape for name in ("step", "exp_avg", "exp_avg_sq")]
            if shapes != [torch.Size(), parameter.shape, parameter.shape]:
                raise ValueError("the optimizer's state is of parameters of other sizes")
            self.state[parameter] = {
                name: state[name].to(parameter.device, copy=True)
                for name in ("step", "exp_avg", "exp_avg_sq")
            }

    def _parameters(self) -> Iterable[nn.Parameter]:
        for group in self.param_groups:
            yield from group["params"]
