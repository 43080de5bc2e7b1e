"""What is measured: steps of the layer beside ``torch.nn``'s, how they grow, and their share of
the machine's rate of multiplications.

Every function returns rows: flat dictionaries, one per contestant and size. A contestant that was
left out has a row too, with the reason under ``skipped``.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fwrnn.benchmarks.machine import Peak, free_memory, measure_peak
from fwrnn.benchmarks.timing import ENOUGH, Timing, alternate, waiter
from fwrnn.layers import FastWeightsRNN, FastWeightsRNNCell, kernels

BASELINE = "nn.LSTM"
OTHERS = {
    "nn.LSTM": nn.LSTM,
    "nn.GRU": nn.GRU,
    "nn.RNN": partial(nn.RNN, nonlinearity="relu"),
}
FAILURES = (RuntimeError, ValueError, TypeError, NotImplementedError, ImportError, MemoryError)
CALLS = 3 + ENOUGH
"""The fewest calls of a contestant: to warm up, to count, the samples, and its memory."""


NOT_TIMED = {"ms": None, "ms_q1": None, "ms_q3": None, "samples": 0, "ratio": None}
"""The columns of a contestant that was left out."""


class Size(NamedTuple):
    """T steps, B sequences, I inputs, H units."""

    steps: int
    batch: int
    inputs: int
    units: int

    def row(self) -> dict:
        return dict(zip("TBIH", self, strict=True))


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    ``steps`` are the (T, I, H) of the compared steps, with ``batch`` sequences. Growth is measured
    with ``growth_batch`` sequences over ``lengths`` (T, at H = 64) and over ``widths`` (H, at
    T = 100), and summed up in the ratios of T = ``growth``. ``small`` are the (T, B, I, H) of few
    sequences, ``cells`` the (B, I, H) of single steps. Each group of contestants is timed for
    ``budget`` seconds, with ``samples`` samples each at most; a sample is as many calls as take
    ``sample_seconds``, so that the clock and a cold cache weigh little. A contestant is left out
    where it would need more than ``patience`` seconds or ``memory`` bytes (None: half of what is
    free). ``product`` is the side of the square matrices that tell the rate of multiplications.
    """

    mode: str
    growth_batch: int
    lengths: tuple[int, ...]
    widths: tuple[int, ...]
    budget: float
    patience: float
    memory: int | None
    samples: int = 50
    sample_seconds: float = 0.01
    product: int = 2048
    batch: int = 128
    steps: tuple[tuple[int, int, int], ...] = (
        (11, 100, 20),
        (11, 100, 50),
        (11, 100, 100),
        (24, 100, 200),
    )
    growth: tuple[int, int] = (500, 2000)
    small: tuple[tuple[int, int, int, int], ...] = tuple(
        (steps, batch, 100, units)
        for batch in (1, 8)
        for steps, units in ((11, 50), (100, 100), (1000, 128))
    )
    cells: tuple[tuple[int, int, int], ...] = tuple(
        (batch, 100, units) for batch in (1, 128) for units in (50, 100)
    )

    @property
    def sizes(self) -> list[Size]:
        return [Size(steps, self.batch, inputs, units) for steps, inputs, units in self.steps]

    @property
    def groups(self) -> int:
        """How often ``progress`` is called before the whole networks."""
        steps = 4 * len(self.steps) + 2 * len(self.small) + 2 * len(self.cells)
        return steps + len(self.lengths) + len(self.widths)


QUICK = Plan(
    "quick",
    growth_batch=64,
    lengths=(50, 200, 500, 2000),
    widths=(20, 64, 200),
    budget=0.45,
    patience=3.0,
    memory=2**31,
)
FULL = Plan(
    "full",
    growth_batch=128,
    lengths=(50, 100, 200, 500, 1000, 2000, 5000),
    widths=(20, 50, 100, 200, 500, 1024),
    budget=5.0,
    patience=25.0,
    memory=None,
)

Progress = Callable[[str], object]


def training_step(module: nn.Module, x: Tensor) -> None:
    """Forward, and backward from the sum of all outputs to every parameter (and to x, if asked)."""
    module.zero_grad(set_to_none=True)
    x.grad = None
    output, _ = module(x)
    output.sum().backward()


def inference_step(module: nn.Module, x: Tensor) -> None:
    """Forward alone, nothing kept for a backward pass."""
    with torch.no_grad():
        module(x)


STEPS = {"training": training_step, "inference": inference_step}


def build(name: str, size: Size, device: torch.device) -> nn.Module:
    """A contestant by its name: one of ``OTHERS``, or the layer in a form of its own or "auto"."""
    if name in OTHERS:
        return OTHERS[name](size.inputs, size.units).to(device)
    layer = FastWeightsRNN(size.inputs, size.units, nonlinearity="relu", backend=name)
    return layer.to(device)


def unavailable(device: torch.device) -> dict[str, str]:
    """The forms of the layer that this device cannot compute, and why."""
    reasons = {}
    for name in kernels.BACKENDS:
        try:
            x = torch.randn(2, 2, 3, device=device)
            module = build(name, Size(2, 2, 3, 20), device)
            training_step(module, x)
            if (form := form_used(module, x)) != name:
                reasons[name] = f"gives way to {form}"
        except Exception as error:  # a kernel's compiler may raise anything
            reasons[name] = _first_line(error)
    return reasons


def form_used(module: nn.Module, x: Tensor) -> str | None:
    """The form of the recurrence that the layer computes for x; None for those of torch.nn."""
    return module.form(x) if isinstance(module, FastWeightsRNN) else None


class Forecast:
    """Tells from a contestant's last size whether the next one would take too long or too much.

    Growth is bounded from above, at the same B. Time: with H², and T², or T for those known to be
    linear in it. Memory: likewise in T, and with H, or H² for the matrix form. Where memory cannot
    be measured, what the plain forms need is assumed. Whom the tables are about, the layer as it
    comes and ``OTHERS``, may take twice as long.
    """

    def __init__(self, plan: Plan, device: torch.device):
        free = free_memory(device)
        self.patience = plan.patience
        self.memory = plan.memory if free is None else min(plan.memory or free, free // 2)
        self._seen: dict[str, tuple[Size, str | None, float, int | None]] = {}

    def learn(
        self, name: str, size: Size, form: str | None, timing: Timing, peak: Peak | None
    ) -> None:
        """Note what a contestant took. The quicker quartile, lest a busy moment be multiplied."""
        self._seen[name] = size, form, timing.ms_q1 / 1e3, None if peak is None else peak.added

    def objection(self, name: str, size: Size) -> str | None:
        """Why this size is better left out, or None."""
        if name not in self._seen:
            return None
        before, form, seconds, peak = self._seen[name]
        linear = name in OTHERS or form in ("matrix", "numba")
        longer = max(1, size.steps / before.steps) ** (1 if linear else 2)
        wider = max(1, size.units / before.units)
        seconds *= longer * wider**2
        patience = self.patience * (2 if name == "auto" or name in OTHERS else 1)
        if CALLS * seconds > patience:
            return f"up to {seconds:,.1f} s a step expected"
        needed = _plain_form_bytes(name, size)
        if peak is not None:
            needed = peak * longer * wider ** (2 if form == "matrix" else 1)
        if self.memory is None or needed <= self.memory:
            return None
        return f"up to {needed / 2**30:,.1f} GiB expected"


def _plain_form_bytes(name: str, size: Size) -> int:
    """Three numbers of four bytes for each unit at each pair of units, or else of steps."""
    if name in OTHERS:
        return 0
    pairs = size.units if name == "matrix" else size.steps
    return 12 * size.batch * size.steps * size.units * pairs


def race(
    step: Callable[[nn.Module, Tensor], None],
    size: Size,
    names: Iterable[str],
    plan: Plan,
    forecast: Forecast,
    device: torch.device,
    with_memory: bool = False,
) -> list[dict]:
    """Time ``step`` of each contestant at one size, in turn; a row each, in the given order."""
    x = torch.randn(size.steps, size.batch, size.inputs, device=device)
    rows, runs = {}, {}
    for name in names:
        form, skipped = None, forecast.objection(name, size)
        if skipped is None:
            try:
                module = build(name, size, device)
                form = form_used(module, x)
                run = partial(step, module, x)
                run()
                runs[name] = run
            except FAILURES as error:
                skipped = _first_line(error)
        rows[name] = {"contestant": name, "form": form, **size.row(), "skipped": skipped}
    timings = in_turn(runs, plan, device)
    columns = compare(timings, BASELINE)
    for name, row in rows.items():
        row |= columns.get(name, NOT_TIMED)
        peak = None
        if with_memory:
            if name in runs:
                peak = typical_peak(runs[name], timings[name], device)
            row |= {"peak_bytes": peak and peak.added, "resident_bytes": peak and peak.resident}
        if name in runs:
            forecast.learn(name, size, row["form"], timings[name], peak)
    return list(rows.values())


def in_turn(
    runs: dict[str, Callable[[], object]], plan: Plan, device: torch.device
) -> dict[str, Timing]:
    """``alternate`` as the plan has it; the runs have been called once before."""
    return alternate(runs, plan.budget, plan.samples, plan.sample_seconds, waiter(device))


def typical_peak(run: Callable[[], object], timing: Timing, device: torch.device) -> Peak | None:
    """The median of three measurements, as an allocator's holes vary; one alone of a slow step."""
    count = 3 if timing.ms < 1000 else 1
    peaks = [measure_peak(run, device) for _ in range(count)]
    known = sorted(peak for peak in peaks if peak is not None)
    return known[count // 2] if len(known) == count else None


def compare(timings: dict[str, Timing], baseline: str) -> dict[str, dict]:
    """The columns of each timing, with the ratio of its median to the baseline's median."""
    base = timings[baseline].ms if baseline in timings else None
    return {
        name: {**asdict(timing), "ratio": base and timing.ms / base}
        for name, timing in timings.items()
    }


def measure_steps(
    plan: Plan, device: torch.device, absent: Iterable[str], progress: Progress
) -> list[dict]:
    """Training and inference steps: the layer, each of its forms but ``absent``, and ``OTHERS``."""
    forms = [name for name in kernels.BACKENDS if name not in absent]
    rows = []
    for kind, step in STEPS.items():
        forecast = Forecast(plan, device)
        for size in plan.sizes:
            progress(f"{kind} step, T={size.steps}, H={size.units}")
            found = race(step, size, ["auto", *forms, *OTHERS], plan, forecast, device)
            rows += [{"step": kind, **row} for row in found]
    return rows


def measure_small(plan: Plan, device: torch.device, progress: Progress) -> list[dict]:
    """Training and inference steps of few sequences."""
    rows = []
    for kind, step in STEPS.items():
        for size in (Size(*numbers) for numbers in plan.small):
            progress(f"{kind} step, B={size.batch}, T={size.steps}")
            nothing_known = Forecast(plan, device)
            found = race(step, size, ["auto", "nn.RNN", BASELINE], plan, nothing_known, device)
            rows += [{"step": kind, **row} for row in found]
    return rows


def measure_one_thread(plan: Plan, device: torch.device, progress: Progress) -> list[dict]:
    """Training steps on one thread, as the jobs of a sweep have it; none where there is but one."""
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        return []
    torch.set_num_threads(1)
    try:
        rows = []
        forecast = Forecast(plan, device)
        for size in plan.sizes:
            progress(f"one thread, H={size.units}")
            rows += race(training_step, size, ["auto", "nn.RNN", BASELINE], plan, forecast, device)
        return rows
    finally:
        torch.set_num_threads(threads)


CELLS = {
    "FastWeightsRNNCell": partial(FastWeightsRNNCell, nonlinearity="relu"),
    "nn.RNNCell": partial(nn.RNNCell, nonlinearity="relu"),
    "nn.LSTMCell": nn.LSTMCell,
}


def measure_cells(plan: Plan, device: torch.device, progress: Progress) -> list[dict]:
    """One step, from the state after the eleven of the paper's task: a game, a stream."""
    rows = []
    for kind in STEPS:
        for batch, inputs, units in plan.cells:
            progress(f"{kind} step of a cell, B={batch}")
            x = torch.randn(batch, inputs, device=device)
            runs = {}
            for name, make in CELLS.items():
                cell, state = make(inputs, units).to(device), None
                with torch.no_grad():
                    for _ in range(11):
                        state = cell(x, state)
                runs[name] = partial(CELL_STEPS[kind], cell, x, state)
                runs[name]()
            columns = compare(in_turn(runs, plan, device), "nn.LSTMCell")
            size = Size(1, batch, inputs, units).row()
            rows += [
                {"step": kind, "contestant": name, "form": None, **size, "skipped": None, **column}
                for name, column in columns.items()
            ]
    return rows


def _train_cell(cell: nn.Module, x: Tensor, state) -> None:
    cell.zero_grad(set_to_none=True)
    state = cell(x, state)
    (state if isinstance(state, Tensor) else state[0]).sum().backward()


def _ask_cell(cell: nn.Module, x: Tensor, state) -> None:
    with torch.no_grad():
        cell(x, state)


CELL_STEPS = {"training": _train_cell, "inference": _ask_cell}


def measure_growth(plan: Plan, device: torch.device, progress: Progress) -> list[dict]:
    """Time and peak memory of a training step against T, and against H."""
    series = {
        "T": [Size(steps, plan.growth_batch, 100, 64) for steps in plan.lengths],
        "H": [Size(100, plan.growth_batch, 100, units) for units in plan.widths],
    }
    names = ["auto", "attention", "matrix", BASELINE]
    rows = []
    for against, sizes in series.items():
        forecast = Forecast(plan, device)
        for size in sizes:
            progress(f"time and memory, T={size.steps}, H={size.units}")
            found = race(training_step, size, names, plan, forecast, device, with_memory=True)
            rows += [{"against": against, **row} for row in found]
    return rows


def growth_ratios(rows: list[dict], short: int, long: int) -> list[dict]:
    """How time and memory grow from T = ``short`` to T = ``long``; linear would be long / short."""
    points = {(row["contestant"], row["T"]): row for row in rows if row["against"] == "T"}
    ratios = []
    for name in dict.fromkeys(name for name, _ in points):
        first, last = (points.get((name, steps), {}) for steps in (short, long))
        row = {"contestant": name, "T_short": short, "T_long": long}
        for column, of in (("time_ratio", "ms"), ("memory_ratio", "peak_bytes")):
            both = first.get(of) and last.get(of)
            row[column] = last[of] / first[of] if both else None
        ratios.append(row)
    return ratios


def multiply_adds(name: str, size: Size, inner_steps: int = 1) -> int:
    """Multiply-adds of a training step that also gives the gradient of its input.

    A matrix product costs once forward and twice backward; nothing is counted that a form computes
    a second time, and neither are element-wise operations, layer normalisation among them.

    The layer, per sequence: C x(t) for every step, T·I·H; W h(t), T·H²; and equation 4, where step
    t compares its query with t - 1 past states and mixes them, H multiply-adds each, S times over:
    S·H·T·(T-1). nn.LSTM: four gates of both products, 4·T·H·(I + H).
    """
    steps, batch, inputs, units = size
    if name == BASELINE:
        forward = 4 * steps * units * (inputs + units)
    else:
        attention = inner_steps * units * steps * (steps - 1)
        forward = steps * inputs * units + steps * units**2 + attention
    return 3 * batch * forward


def measure_share(plan: Plan, device: torch.device, progress: Progress) -> list[dict]:
    """The part of the machine's rate of float32 matrix products that a training step achieves.

    Here the step includes the gradient of the input, so that all that is counted is computed. On
    CUDA, cuDNN runs nn.LSTM in TF32 by default, which can be faster than any float32 product.
    """
    a, b = (torch.randn(plan.product, plan.product, device=device) for _ in range(2))
    product = torch.empty_like(a)
    rows = []
    for size in plan.sizes:
        progress(f"share of the machine, T={size.steps}, H={size.units}")
        x = torch.randn(size.steps, size.batch, size.inputs, device=device, requires_grad=True)
        names = ("auto", BASELINE)
        runs: dict[str, Callable[[], object]] = {
            name: partial(training_step, build(name, size, device), x) for name in names
        }
        runs["product"] = partial(torch.mm, a, b, out=product)
        for run in runs.values():
            run()
        timings = in_turn(runs, plan, device)
        rate = plan.product**3 / timings["product"].ms
        for name in names:
            work = multiply_adds(name, size)
            row = {"contestant": name, **size.row(), **asdict(timings[name])}
            row |= {"multiply_adds": work, "gflops": 2e-6 * work / timings[name].ms}
            row |= {"sgemm_gflops": 2e-6 * rate, "share": work / timings[name].ms / rate}
            rows.append(row)
    return rows


def measure_updates(
    updates: dict[str, Callable[[], object]], plan: Plan, device: torch.device
) -> dict[str, dict]:
    """Time whole training updates, a function each, in turn; the columns of each, by its name."""
    for update in updates.values():
        update()
    timings = in_turn(updates, plan, device)
    columns = compare(timings, "lstm")
    for row in columns.values():
        row["updates_per_second"] = 1e3 / row["ms"]
    return columns


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
