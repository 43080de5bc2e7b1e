"""Does the layer, with its defaults, learn wherever ``torch.nn.RNN`` does?

Four tasks that a program makes up, at several lengths, sizes and depths, learned by both layers in
the same budget by the same optimiser: what happens to somebody who exchanges one for the other.
"""

import math
import string
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from functools import cache
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fwrnn.layers import FastWeightsRNN

LAYERS: dict[str, Callable[..., nn.Module]] = {
    "nn.RNN": nn.RNN,
    "FastWeightsRNN": FastWeightsRNN,
}
STEPS, DEPTHS, UNITS, NONLINEARITIES = (16, 64, 200), (1, 2), (32, 128), ("tanh", "relu")
UPDATES, WARMUP, BATCH, LEARNING_RATE, CLIP, HELD_OUT = 3000, 100, 64, 3e-3, 1.0, 1024
LEARNS = 0.95  # of what is lost without looking: below it, something was learned
CLOSE = 1.05  # of the other's loss
SOLVED = 0.02  # of what is lost without looking: at or below it, which of two is lower is luck


class Batch(NamedTuple):
    """Inputs (T, B, I), and the targets of the last K steps: classes (K, B) or numbers (1, B)."""

    inputs: Tensor
    targets: Tensor


@dataclass(frozen=True)
class Task:
    """A way to make up batches, how many numbers it asks for, and what is lost without looking."""

    make: Callable[[int, int, np.random.Generator], Batch]
    outputs: int
    blank: float


@dataclass(frozen=True)
class Trial:
    """One network and what it is to learn."""

    task: str
    steps: int
    layers: int
    units: int
    nonlinearity: str
    layer: str
    seed: int
    updates: int = UPDATES
    learning_rate: float = LEARNING_RATE


def trials(seeds: int, updates: int, learning_rate: float) -> list[Trial]:
    """The whole battery, one seed after another, so that a part of it is a battery already."""
    return [
        Trial(task, steps, layers, units, nonlinearity, layer, seed, updates, learning_rate)
        for seed, steps, units, layers, nonlinearity, task, layer in product(
            range(seeds), STEPS, UNITS, DEPTHS, NONLINEARITIES, TASKS, LAYERS
        )
    ]


def run(trial: Trial, threads: int = 1) -> dict:
    """Train one network; its settings, its loss on held-out sequences and, of classes, its error.
    A loss that is no finite number any more is None.

    Adam at the trial's learning rate, from 0 in 100 updates and back to 0 along a cosine, gradients
    clipped at 1, 64 fresh sequences at a time. Equal trials give equal numbers on one machine.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(trial.seed)
    task = TASKS[trial.task]
    draw = np.random.default_rng([trial.seed, 0])
    inputs = task.make(trial.steps, 1, draw).inputs.shape[-1]
    core = LAYERS[trial.layer](inputs, trial.units, trial.layers, trial.nonlinearity)
    head = nn.Linear(trial.units, task.outputs)
    parameters = [*core.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=trial.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda n: min(1, (n + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * n / trial.updates)),
    )
    for _ in range(trial.updates):
        loss, _ = _loss(core, head, task.make(trial.steps, BATCH, draw))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        held_out = task.make(trial.steps, HELD_OUT, np.random.default_rng([trial.seed, 1]))
        loss, error = _loss(core, head, held_out)
    ended = loss.item() if loss.isfinite() else None
    return asdict(trial) | {"loss": ended, "error": error, "blank": task.blank}


def cells(results: list[dict]) -> list[dict]:
    """The mean loss of both layers over the seeds that both have finished, and what it says.

    ``learns``: ``nn.RNN`` ends below 0.95 of what is lost without looking. ``close``: ours ends
    within 1.05 of its loss, or both at a fiftieth of what is lost without looking.
    """
    found: dict[tuple, dict[str, dict[int, dict]]] = {}
    for result in results:
        setting = tuple(result[name] for name in SETTINGS)
        found.setdefault(setting, {}).setdefault(result["layer"], {})[result["seed"]] = result
    rows = []
    for setting, layers in sorted(found.items()):
        theirs, ours = (layers.get(name, {}) for name in LAYERS)
        seeds = sorted(theirs.keys() & ours.keys())
        if not seeds:
            continue
        their_loss, our_loss = (
            sum(_or_infinite(finished[seed]["loss"]) for seed in seeds) / len(seeds)
            for finished in (theirs, ours)
        )
        blank = theirs[seeds[0]]["blank"]
        rows.append({
            **dict(zip(SETTINGS, setting, strict=True)),
            "seeds": len(seeds),
            "rnn_loss": their_loss,
            "fast_weights_loss": our_loss,
            "learns": their_loss < LEARNS * blank,
            "close": our_loss <= max(CLOSE * their_loss, SOLVED * blank),
            "solved": our_loss <= SOLVED * blank,
        })  # fmt: skip
    return rows


def _or_infinite(loss: float | None) -> float:
    return math.inf if loss is None else loss


def markdown(cells: list[dict]) -> str:
    """One row per task and size, losses as ours / nn.RNN's, and what they come to."""
    lines = [summary(cells), ""]
    for task in dict.fromkeys(cell["task"] for cell in cells):
        lines += [f"### {task}", "", HEAD, "|---" * 5 + "|"]
        rows: dict[tuple, dict[str, dict]] = {}
        for cell in cells:
            if cell["task"] == task:
                size = cell["steps"], cell["layers"], cell["units"]
                rows.setdefault(size, {})[cell["nonlinearity"]] = cell
        for size, by_function in sorted(rows.items()):
            both = (_losses(by_function.get(name)) for name in ("tanh", "relu"))
            lines.append("| " + " | ".join([*map(str, size), *both]) + " |")
        lines.append("")
    return "\n".join(lines).rstrip()


HEAD = "| T | layers | H | tanh: ours / `nn.RNN` | ReLU: ours / `nn.RNN` |"


def summary(cells: list[dict]) -> str:
    """How many cells are as they should be, in words."""
    learned = [cell for cell in cells if cell["learns"]]
    close = sum(cell["close"] for cell in learned)
    ahead = sum(cell["fast_weights_loss"] < cell["rnn_loss"] for cell in cells)
    recalled = [cell for cell in cells if cell["task"] == "retrieval"]
    solved = sum(cell["solved"] for cell in recalled)
    return (
        "Where nn.RNN learns, FastWeightsRNN ends within 1.05 of its loss, or at a fiftieth of "
        f"what is lost without looking, in {close} of {len(learned)} cells; it is ahead in {ahead} "
        f"of all {len(cells)}. Retrieval is solved in {solved} of {len(recalled)}. Means of up to "
        f"{max((cell['seeds'] for cell in cells), default=0)} seeds; nats, and squares for adding; "
        "**bold**: ours is more than 1.05 of nn.RNN's where that learns."
    )


def _losses(cell: dict | None) -> str:
    if cell is None:
        return ""
    text = f"{cell['fast_weights_loss']:.4f} / {cell['rnn_loss']:.4f}"
    return text if cell["close"] or not cell["learns"] else f"**{text}**"


def _loss(core: nn.Module, head: nn.Module, batch: Batch) -> tuple[Tensor, float | None]:
    """The mean loss over the steps that are asked, and the fraction of wrong classes."""
    answers = head(core(batch.inputs)[0][-len(batch.targets) :])
    if batch.targets.is_floating_point():
        return F.mse_loss(answers.squeeze(-1), batch.targets), None
    wrong = (answers.argmax(-1) != batch.targets).float().mean().item()
    return F.cross_entropy(answers.flatten(0, 1), batch.targets.flatten()), wrong


def adding(steps: int, batch: int, draw: np.random.Generator) -> Batch:
    """The sum of the two numbers that are marked, one in each half (Hochreiter, Schmidhuber)."""
    numbers, marks = draw.random((steps, batch)), np.zeros((steps, batch))
    rows, half = np.arange(batch), steps // 2
    marks[draw.integers(0, half, batch), rows] = 1
    marks[draw.integers(half, steps, batch), rows] = 1
    inputs = torch.tensor(np.stack([numbers, marks], -1), dtype=torch.float32)
    return Batch(inputs, torch.tensor((numbers * marks).sum(0, keepdims=True), dtype=torch.float32))


def copying(steps: int, batch: int, draw: np.random.Generator) -> Batch:
    """Symbols of eight, a pause as long as the sequence allows, and the same symbols again."""
    count, blank, go = min(10, steps // 3), 8, 9
    symbols = draw.integers(0, 8, (count, batch))
    inputs = np.full((steps, batch), blank)
    inputs[:count], inputs[-count] = symbols, go
    return Batch(_one_hot(inputs, 10), torch.tensor(symbols))


def retrieval(steps: int, batch: int, draw: np.random.Generator) -> Batch:
    """Nothing, then four pairs of a key and a value, then each key again for its value.

    Keys are of eight, different in a sequence, values of four. The paper asks for one value a
    sequence, which takes the same and is learned more slowly.
    """
    pairs, blank = 4, 12
    keys = draw.permuted(np.tile(np.arange(8), (batch, 1)), axis=1)[:, :pairs].T
    values = draw.integers(0, 4, (pairs, batch))
    order = draw.permuted(np.tile(np.arange(pairs), (batch, 1)), axis=1).T
    inputs = np.full((steps, batch), blank)
    inputs[-3 * pairs : -pairs : 2], inputs[1 - 3 * pairs : -pairs : 2] = keys, 8 + values
    inputs[-pairs:] = np.take_along_axis(keys, order, 0)
    return Batch(_one_hot(inputs, 13), torch.tensor(np.take_along_axis(values, order, 0)))


ALPHABET = string.ascii_lowercase + " ."


def text(steps: int, batch: int, draw: np.random.Generator) -> Batch:
    """The next character, at every step, of sentences in a language of 200 made-up words."""
    stream, needed = [], batch * (steps + 1)
    words, successors = _language()
    word = 0
    while len(stream) < needed:
        word = successors[word][min(draw.geometric(0.3) - 1, len(successors[word]) - 1)]
        stream.extend(words[word])
        stream.extend(_END if draw.random() < 0.12 else _SPACE)
    characters = np.array(stream[:needed]).reshape(batch, steps + 1).T
    return Batch(_one_hot(characters[:-1], len(ALPHABET)), torch.tensor(characters[1:]))


_SPACE, _END = [ALPHABET.index(" ")], [ALPHABET.index("."), ALPHABET.index(" ")]


@cache
def _language() -> tuple[list[list[int]], list[list[int]]]:
    """The words, as numbers of characters, and which may follow each, the likeliest first."""
    draw = np.random.default_rng(0)
    syllables = [c + v for c in "bdfghklmnprstvz" for v in "aeiou"]
    words = ["".join(draw.choice(syllables, draw.integers(1, 4))) for _ in range(200)]
    successors = [list(map(int, draw.permutation(200)[:12])) for _ in words]
    return [[ALPHABET.index(c) for c in word] for word in words], successors


def _one_hot(symbols: np.ndarray, count: int) -> Tensor:
    return F.one_hot(torch.tensor(symbols), count).float()


TASKS = {
    "text": Task(text, len(ALPHABET), 2.83),
    "adding": Task(adding, 1, 1 / 6),
    "copying": Task(copying, 8, math.log(8)),
    "retrieval": Task(retrieval, 4, math.log(4)),
}

SETTINGS: dict[str, Collection] = {  # what makes a cell
    "task": TASKS,
    "steps": STEPS,
    "layers": DEPTHS,
    "units": UNITS,
    "nonlinearity": NONLINEARITIES,
}
