"""The associative LSTM over whole sequences on the CPU: what lies around ``associative_loops``.

PyTorch multiplies the inputs of all steps at once, and makes the gradient of the weight.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from fwrnn.layers.equations import may_be_dual
from fwrnn.layers.kernels import cpu, trial
from fwrnn.layers.kernels.operators import is_observed, pulled_back

Form = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def recurrence(
    eager: Form, steps: Tensor, weight: Tensor, hidden: Tensor, cells: Tensor, permutations: Tensor
) -> tuple[Tensor, Tensor]:
    """The hidden states (T, B, H) and the last cells, by the loops where they reach.

    Args:
        eager: the same in PyTorch operations, called with the other arguments where they do not.
        steps: affine(x) for every step, (T, B, N).
        weight: of h in the affine map, (N, H).
        hidden, cells: the state, (B, H) and (B, copies, H/2, 2).
        permutations: (copies, H/2).
    """
    inputs = steps, weight, hidden, cells
    try:
        if _reach(*inputs, permutations) and _work(eager, *inputs, permutations):
            save = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
            return _Recurrence.apply(*inputs, permutations, eager, save)
    except RuntimeError:  # what PyTorch says, at once, when vmap or torch.func call
        pass
    return eager(*inputs, permutations)


def _reach(*tensors: Tensor) -> bool:
    """Whether the loops take these tensors, the arguments of ``recurrence``."""
    steps, _, hidden, cells, _ = tensors
    return (
        not is_observed(*tensors)
        and steps.dtype in cpu.DTYPES
        and steps.numel() > 0
        and all(tensor.device.type == "cpu" for tensor in tensors)
        and all(tensor.dtype == steps.dtype for tensor in tensors[:-1])
        and not may_be_dual()
        and cpu.is_installed()
        and _fit(*tensors)  # else it is for PyTorch to say
    )


def _fit(
    steps: Tensor, weight: Tensor, hidden: Tensor, cells: Tensor, permutations: Tensor
) -> bool:
    """Whether the sizes go together, and no permutation leads out of a row: the loops, which look
    at neither, would read and write elsewhere."""
    copies, half = permutations.shape
    return (
        steps.dim() == 3
        and weight.shape == (steps.shape[2], 2 * half)
        and hidden.shape == (steps.shape[1], 2 * half)
        and cells.shape == (steps.shape[1], copies, half, 2)
        and permutations.dtype == torch.int64
        and bool(((permutations >= 0) & (permutations < half)).all())
    )


def _work(eager: Form, *inputs: Tensor) -> bool:
    """Whether the loops pass their ``trial``, for tensors that they take."""
    steps, _, _, cells, permutations = inputs
    sizes = steps.shape[-1], cells.shape[1:]
    find_fault = partial(_fault, eager, sizes, permutations, steps.dtype)
    return trial.passes("associative LSTM", steps.device, steps.dtype, find_fault)


NAMES = (
    "h", "the last memory", "the gradient of the steps", "the gradient of the weight",
    "the gradient of the first h", "the gradient of the first memory",
)  # fmt: skip


def _fault(eager: Form, sizes, permutations: Tensor, dtype: torch.dtype) -> str | None:
    """How the loops differ from the eager form, on two steps of three sequences."""
    generator, (columns, (copies, half, _)) = torch.Generator().manual_seed(0), sizes
    shapes = (2, 3, columns), (columns, 2 * half), (3, 2 * half), (3, copies, half, 2)

    def random(shape: tuple[int, ...], scale: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64) * scale

    inputs = [random(shape, 0.1 if k == 1 else 1) for k, shape in enumerate(shapes)]
    gradients = [random(shape) for shape in ((2, *shapes[2]), shapes[3])]

    def outcome(compute: Callable, dtype: torch.dtype) -> list[Tensor]:
        leaves = [tensor.to(dtype).requires_grad_() for tensor in inputs]
        outputs = compute(*leaves, permutations)
        grads = [gradient.to(dtype) for gradient in gradients]
        return [*outputs, *torch.autograd.grad(outputs, leaves, grads)]

    found = outcome(lambda *tensors: _Recurrence.apply(*tensors, eager, True), dtype)
    return trial.difference(NAMES, found, outcome(eager, torch.float64), dtype, NAMES)


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx, steps, weight, hidden, cells, permutations, eager, save):
        plan = _Plan(steps, cells, permutations, save)
        states = plan.empty(len(steps), *hidden.shape)
        affine, found, memories = plan.kept(cells)
        given = (tensor.contiguous() for tensor in (steps, weight, hidden))
        plan.run(0, *given, states, affine, found, memories)
        ctx.eager, ctx.plan = eager, plan
        ctx.set_materialize_grads(False)
        kept = (affine, found, memories) if save else ()
        ctx.save_for_backward(steps, weight, hidden, cells, permutations, states, *kept)
        return states, plan.in_rows(memories[-1])

    @staticmethod
    def backward(ctx, grad_states, grad_cells):
        saved = ctx.saved_tensors  # unpacked once, as checkpoints insist
        *inputs, permutations, _ = saved[:6]
        if grad_states is None and grad_cells is None:  # who came before had no gradients
            return (None,) * (len(inputs) + len(NOTHING))
        if not torch.is_grad_enabled() and _reach(*inputs, permutations):
            try:
                return *_Recurrence._fused(ctx, saved, grad_states, grad_cells), *NOTHING
            except RuntimeError:  # gradients in a batch, as Jacobians ask for, have no addresses
                pass
        given, grads = (*inputs, permutations), (grad_states, grad_cells)
        return *pulled_back(ctx.eager, given, grads, ctx.needs_input_grad), None, None

    @staticmethod
    def _fused(ctx, saved, grad_states, grad_cells):
        (*inputs, _, states), kept = saved[:6], saved[6:]
        (steps, weight, hidden, cells), plan = inputs, ctx.plan
        grad_states = torch.zeros_like(states) if grad_states is None else grad_states.contiguous()
        grad_memory = plan.in_lanes(torch.zeros_like(cells) if grad_cells is None else grad_cells)
        grad_steps, grad_hidden = plan.empty(*steps.shape), plan.empty(*hidden.shape)
        grads = grad_states, grad_memory, grad_steps, grad_hidden
        kept = (tensor.contiguous() for tensor in kept)
        plan.run(1, None, weight.contiguous(), None, None, *kept, *grads)
        before = torch.cat([hidden.unsqueeze(0), states[:-1]])
        grad_weight = grad_steps.flatten(0, 1).t() @ before.flatten(0, 1)
        return grad_steps, grad_weight, grad_hidden, plan.in_rows(grad_memory)


NOTHING = (None,) * 3  # the gradients of what is not differentiated


class _Plan:
    """The sizes of a call, and the layout in which the loops keep what is theirs."""

    def __init__(self, steps: Tensor, cells: Tensor, permutations: Tensor, save: bool):
        from fwrnn.layers.kernels import associative_loops as loops

        self.dtype, self.save = steps.dtype, save
        count, self.batch, columns = steps.shape
        _, copies, half, _ = cells.shape
        heads = (columns // half - 1) // 8
        self.lanes = cpu.lanes_of(self.dtype)
        self.blocks = -(-self.batch // self.lanes)
        self.threads = min(torch.get_num_threads(), self.blocks)
        self.kept_steps = count if save else 0
        self.sizes = columns, heads * 2 * half
        self.permutations = permutations.contiguous()
        size = loops.work_rows(heads) * half * self.lanes
        self.work_size = self.threads * size
        self.loops = cpu.compiled("associative_loops", self.dtype)
        self.numbers = (
            *(0 for _ in loops.COUNTERS), loops.VERSION, self.blocks, count, self.batch, half,
            copies, heads, save, size, cpu.address(self.permutations),
        )  # fmt: skip
        self.arrays = len(loops.ARRAYS)

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device="cpu")  # whatever the default device

    def kept(self, cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Places for the affine maps and the reads, and the memories, the first of them filled."""
        places = self.kept_steps * self.blocks or self.threads
        affine, found = (self.empty(places, size, self.lanes) for size in self.sizes)
        first = self.in_lanes(cells)
        if not self.save:
            return affine, found, first.unsqueeze(0)
        memories = self.empty(self.kept_steps + 1, *first.shape)
        memories[0] = first
        return affine, found, memories

    def in_lanes(self, cells: Tensor) -> Tensor:
        """(B, copies, H/2, 2) → (blocks, copies, 2, H/2, lanes), zeros in idle lanes."""
        padded = cells.new_zeros(self.blocks * self.lanes, *cells.shape[1:])
        padded[: self.batch] = cells
        blocked = padded.view(self.blocks, self.lanes, *cells.shape[1:])
        return blocked.permute(0, 2, 4, 3, 1).contiguous()

    def in_rows(self, memory: Tensor) -> Tensor:
        """The way back; no view as autograd sees it, which callers may not change in place."""
        rows = memory.permute(0, 4, 1, 3, 2).flatten(0, 1)
        return rows[: self.batch].contiguous().detach()

    def run(self, which: int, *tensors: Tensor | None) -> None:
        """Run loop 0 (forward) or 1 (backward); arrays in their order, less ``work``."""
        inputs, grads = tensors[:7], tensors[7:]
        work = self.empty(self.work_size)  # of this call: another thread may go back with this plan
        everything = (*inputs, work, *grads)
        cpu.call(self.loops[which], self.numbers, everything, self.arrays, self.threads)
