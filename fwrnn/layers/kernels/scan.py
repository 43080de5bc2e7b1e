"""The recurrence as one ``scan`` over time, for programs that are exported to run elsewhere."""

import torch
from torch import Tensor

from fwrnn.layers import equations
from fwrnn.layers.equations import SlowWeights
from fwrnn.layers.kernels import eager
from fwrnn.layers.memory import FastMemory
from fwrnn.rule import Rule


def recurrence(
    drive: Tensor,
    hidden: Tensor,
    memory: FastMemory | None,
    slow: SlowWeights,
    rule: Rule,
    lengths: Tensor | None,
) -> tuple[Tensor, FastMemory]:
    """The matrix form with T left open. Takes and returns what ``kernels.recurrence`` documents.

    Exported programs are for inference: no gradients come out of them, as PyTorch exports those of
    a scan neither to its own programs nor to ONNX (2.13).
    """

    # A private name, as there is no public one up to PyTorch 2.15; nobody else here needs it.
    from torch._higher_order_ops.scan import scan

    batch = None
    if not torch.compiler.is_dynamo_compiling():
        batch = drive.shape[1]  # as Inductor looks for open sizes among what a scan is given
        torch.compiler.reset()  # what an earlier export assumed of them

    def step(carry, here):
        hidden, A = carry
        drive, running = here
        hidden = eager.next_state(
            drive, hidden, lambda query: equations.read(A, query), slow, rule, running
        )
        output = hidden.clone() if batch is None else hidden.expand(batch, -1).clone()
        return (hidden, eager.write_matrix(A, hidden, rule, running)), output

    times = torch.arange(drive.shape[0], device=drive.device).unsqueeze(-1)
    ends = drive.shape[0] if lengths is None else lengths
    running = (times < ends).expand(drive.shape[:2])
    given = FastMemory.empty(hidden) if memory is None else memory
    weight_hh, *others = slow
    others = (None if part is None else part.detach() for part in others)
    slow = SlowWeights(weight_hh.detach(), *others)
    # Copies, as a scan takes no views of one another, and detached from whatever has a gradient.
    start = hidden.detach().clone(), given.matrix().detach().clone()
    (_, A), states = scan(step, start, (drive.detach().clone(), running.clone()))
    return states, FastMemory.from_matrix(A)
