"""The paper's multi-level fast associative memory (sections 4.2 and 4.3, figure 3).

A picture is looked at region by region. Of each region the network sees one coarse glimpse, then
several fine ones, then the coarse one again. The fast memory joins the two levels: what the fine
glimpses tell is integrated with what the coarse one *retrieves*. Per region, with ``hidden`` from
the region before (0 at first) and A = 0 at the start of every picture:

    1. h_c    = f(LN[W hidden + C x_coarse])      the coarse glimpse, in the light of what was seen
    2. A      ← λ A + η h_c h_cᵀ;  h ← 0          it is written, and the hidden state wiped
    3. h      ← f(LN[W h + C x_fine])             for each fine glimpse; A is not read
    4. g      = f(LN[C x_coarse])                 the coarse glimpse again, alone
    5. hidden = f(LN[V h + A g])                  integration, V a matrix of its own
    6. goes on as ``hidden`` into the next region

Figure 3 has the arrows. Ours, where it says nothing: layer normalisation in steps 1, 3 and 4, each
level with gains of its own (steps 1 and 4 share theirs, so that g can match what was written); S
repetitions of step 5, each with the last one's result in the place of g; dropout, off by default,
on the h of step 3 that is integrated; V starts like the other slow weights, uniform in ±1/√H.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fwrnn.layers import equations
from fwrnn.layers.equations import SlowWeights
from fwrnn.layers.initialization import FAST_WEIGHTS_SCALE, scaled_identity_, uniform_outgoing_
from fwrnn.layers.memory import FastMemory, FastWeightsState
from fwrnn.rule import Rule


class MultiLevelFastWeights(nn.Module):
    """A recurrent layer over regions of 1 coarse, ``fine`` fine, and 1 coarse glimpse again.

    Args:
        input_size: numbers per glimpse, I.
        hidden_size: units, H.
        fine: fine glimpses per region; the paper has 4.
        decay: λ, from 0 to 1; fast_lr: η; inner_steps: S, at least 1.
        nonlinearity: f, "relu" (the paper's) or "tanh".
        layer_norm: over the units.
        dropout: of the fine states that are integrated, in training.

    Inputs: ``input`` (T, B, I) with T a multiple of fine + 2, and a ``FastWeightsState`` or None
    for zeros. Outputs: the integrated state of every region, (T / (fine + 2), B, H), and the last
    ``FastWeightsState``.

    Raises:
        ValueError: a setting out of range, or an input that is no whole number of regions.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        fine: int = 4,
        decay: float = 0.95,
        fast_lr: float = 0.5,
        inner_steps: int = 1,
        nonlinearity: str = "relu",
        layer_norm: bool = True,
        dropout: float = 0.0,
    ):
        super().__init__()
        if fine < 1:
            raise ValueError(f"fine must be 1 or more, got {fine}; the paper has 4")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}; 0 turns it off")
        # Starting the inner loop from a state that is given, here g, is what "previous" means.
        self.rule = Rule(decay, fast_lr, inner_steps, nonlinearity, inner_start="previous")
        self.input_size, self.hidden_size, self.fine = input_size, hidden_size, fine
        self.dropout = dropout
        self.weight_ih = nn.Parameter(torch.empty(hidden_size, input_size))  # C
        self.weight_hh = nn.Parameter(torch.empty(hidden_size, hidden_size))  # W
        self.weight_integration = nn.Parameter(torch.empty(hidden_size, hidden_size))  # V
        self.bias = nn.Parameter(torch.empty(hidden_size))
        for level in ("coarse", "fine", "integration"):
            for name, start in (("weight", torch.ones), ("bias", torch.zeros)):
                norm = nn.Parameter(start(hidden_size)) if layer_norm else None
                self.register_parameter(f"{level}_norm_{name}", norm)
        uniform_outgoing_(self.weight_ih)
        uniform_outgoing_(self.weight_integration)
        uniform_outgoing_(self.bias)
        scaled_identity_(self.weight_hh, FAST_WEIGHTS_SCALE)

    def forward(
        self, input: Tensor, hx: FastWeightsState | None = None
    ) -> tuple[Tensor, FastWeightsState]:
        outputs, _, _, memory = self._regions(input, hx)
        return torch.stack(outputs), FastWeightsState(outputs[-1].clone(), memory)

    def attention(self, input: Tensor) -> Tensor:
        """How strongly each region's second look retrieves each region's first: (B, R, R).

        Entry (b, r, ρ) is η λ^(r-ρ) [h_c(ρ)·g(r)], the factor of h_c(ρ) in A g (equation 4); 0 for
        ρ > r.
        """
        _, written, queries, _ = self._regions(input, None)
        regions = torch.arange(len(written), device=input.device)
        ages = regions.unsqueeze(1) - regions
        factors = equations.strengths(ages, self.rule, queries.dtype)
        return torch.einsum("rbh,sbh,rs->brs", queries, torch.stack(written), factors)

    def _regions(self, input: Tensor, hx: FastWeightsState | None):
        """Figure 3: the integrated states, what was written, both per region, all g, and A.

        Steps 3 and 4 know nothing of other regions, so all regions take them at once.
        """
        drive = F.linear(self._by_region(input), self.weight_ih, self.bias)
        coarse, *fine, again = drive.unbind(1)  # (R, B, H) each
        hidden = torch.zeros_like(coarse[0]) if hx is None else hx[0]
        memory = FastMemory.empty(hidden) if hx is None else FastMemory(*hx[1])  # traced: a tuple
        if memory.outgrows(len(coarse)) and not memory.is_empty():
            memory = FastMemory.from_matrix(memory.matrix())
        seen = F.dropout(self._fine_states(fine), self.dropout, self.training)  # 3
        transitions = F.linear(seen, self.weight_integration)
        queries = self._activate(again, "coarse")  # 4
        integration = self._slow_weights("integration")
        written, outputs = [], []
        for glimpse, transition, query in zip(coarse, transitions, queries, strict=True):
            carried = equations.sustained_input(glimpse, hidden, self._slow_weights("coarse"))
            written.append(self._activate(carried, "coarse"))  # 1
            memory = memory.write(written[-1], self.rule)  # 2
            hidden, _ = equations.inner_loop(
                transition, query, memory.read, integration, self.rule
            )  # 5
            outputs.append(hidden)  # 6
        return outputs, written, queries, memory

    def _fine_states(self, fine: list[Tensor]) -> Tensor:
        """Step 3, from a wiped hidden state through the fine glimpses, each (R, B, H)."""
        state = self._activate(fine[0], "fine")  # W h is 0
        for glimpse in fine[1:]:
            total = equations.sustained_input(glimpse, state, self._slow_weights("fine"))
            state = self._activate(total, "fine")
        return state

    def _activate(self, total: Tensor, level: str) -> Tensor:
        """f(LN[total])."""
        normalised = equations.layer_norm(total, self._slow_weights(level))
        return equations.ACTIVATIONS[self.rule.nonlinearity](normalised)

    def _slow_weights(self, level: str) -> SlowWeights:
        return SlowWeights(
            self.weight_hh,
            getattr(self, f"{level}_norm_weight"),
            getattr(self, f"{level}_norm_bias"),
        )

    def _by_region(self, input: Tensor) -> Tensor:
        """(T, B, I) → (R, fine + 2, B, I)."""
        size = self.fine + 2
        if input.dim() != 3 or not len(input) or len(input) % size:
            raise ValueError(
                f"MultiLevelFastWeights takes (T, B, I) with T a multiple of {size} glimpses, got "
                f"shape {tuple(input.shape)}; give whole regions of 1 coarse, {self.fine} fine and "
                "1 coarse glimpse"
            )
        return input.unflatten(0, (-1, size))
