"""What there is to reproduce: the cells of every table and figure, and how a run of each is made.

A cell's runs lie in ``FOLDER/seed0``, ``seed1``, …: those that ship below ``kept_folder()``, those
that somebody trains again below a folder of their own, by the same names.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from fwrnn.reproduction import published
from fwrnn.reproduction.published import ROUNDING


@dataclass(frozen=True)
class Cell:
    """A number of the paper, or one beside it that it does not have.

    ``model`` is the network's name, ``column`` what the cell is of besides (units, or a game),
    ``folder`` where its runs are, ``train`` what ``fwrnn train`` takes to make one, less seed and
    folder, and ``seeds`` how many belong to it. ``paper`` is in per cent, or a reward where
    ``score`` says so, and exact to ``slack``; None where the paper has none.
    """

    model: str
    column: int | str
    folder: str
    train: tuple[str, ...]
    seeds: int
    paper: float | None = None
    score: str = "error"
    slack: float = ROUNDING


@dataclass(frozen=True)
class Target:
    """A table or figure: what it is called, its cells, and what a column is.

    ``needs`` says what cannot be made up here; ``stand_in`` that the data are others than the
    paper's, so that its numbers are shown and not judged by.
    """

    name: str
    title: str
    column: str
    cells: tuple[Cell, ...]
    needs: str | None = None
    stand_in: bool = False


def kept_folder() -> Path:
    """Where the runs lie that ship: inside an installed package, else in the checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "paper"
    return inside if inside.is_dir() else package.parent / "outputs" / "paper"


LEARNED_READ, LEARNED = "fast_weights_learned_read", "table1_learned_read"


def _grid(
    table: str,
    numbers: dict[str, dict[int, float]],
    besides: Mapping[tuple[str, int], tuple[str, ...]] = MappingProxyType({}),
    **seeds: int,
) -> tuple[Cell, ...]:
    """A table by models and units; of three seeds, or as many as are given for a model.

    ``besides`` has what else is set for some model and number of units.
    """
    return tuple(
        Cell(
            model, units, f"{table}/{model}-{units}",
            (f"experiment={table}", f"model={model}", f"model.hidden_size={units}",
             *besides.get((model, units), ())),
            seeds.get(model, 3), paper,
        )
        for model, row in numbers.items()
        for units, paper in row.items()
    )  # fmt: skip


def _table1() -> tuple[Cell, ...]:
    learned = [
        Cell(
            LEARNED_READ, units, f"table1/{LEARNED_READ}-{units}",
            (f"experiment={LEARNED}", "control=learned_read", f"model.hidden_size={units}"), 5,
        )
        for units in (14, 20, 50, 100)
    ]  # fmt: skip
    # What the grid chose; it hardly tells rates apart where there are more units.
    rates = {("fast_weights", 20): ("trainer.learning_rate=0.0003",)}
    return *_grid("table1", published.TABLE1, rates, fast_weights=5), *learned


def _table3() -> tuple[Cell, ...]:
    layers = {"convnet": ("model.layers=2",)}
    return tuple(
        Cell(
            model, 200, f"table3/synthetic-{model}-200",
            ("experiment=table3", f"model={model}", *layers.get(model, ())), 3, row[200],
        )
        for model, row in published.TABLE3.items()
    )  # fmt: skip


GAMES = {16: 3, 24: 5}
"""The sizes of figure 5's screens, and for how many frames the ball is seen."""


def _figure5() -> tuple[Cell, ...]:
    return tuple(
        Cell(
            model, f"n{size}", f"figure5/{model}-n{size}",
            ("experiment=figure5", f"model={model}", f"task.size={size}",
             f"task.visible_frames={frames}"),
            10, published.curve(f"figure5-n{size}", model)[1][-1], "reward", 0.02,
        )
        for size, frames in GAMES.items()
        for model in ("fast_weights", "lstm", "rnn")
    )  # fmt: skip


def _figure2() -> tuple[Cell, ...]:
    """What table 1's runs do not solve is trained for longer."""
    longer = [
        Cell(
            model, 50, f"figure2/{model}-50", ("experiment=figure2", f"model={model}"), 3,
            published.TABLE1[model][50],
        )
        for model in ("lstm", "irnn")
    ]  # fmt: skip
    solved = LEARNED_READ, "fast_weights", "associative_lstm"
    folders = [f"table1/{model}-50" for model in solved]
    return (*(cell for cell in _table1() if cell.folder in folders), *longer)


CONTROLS = (
    "no_memory", "no_inner_steps", "folded", "no_layer_norm", "normalised_start", "identity",
    "learned_read",
)  # fmt: skip


def _controls() -> tuple[Cell, ...]:
    network = next(cell for cell in _table1() if cell.folder == "table1/fast_weights-50")
    cells = [
        Cell(
            f"fast_weights_{control}", 50,
            f"controls/fast_weights_{control}-S{0 if control == 'no_inner_steps' else 1}",
            ("experiment=controls", f"control={control}"), 3,
        )
        for control in CONTROLS
    ]  # fmt: skip
    cells += [
        Cell(
            f"fast_weights, S = {steps}", 50, f"controls/fast_weights-S{steps}",
            ("experiment=controls", f"model.inner_steps={steps}"), 3,
        )
        for steps in (2, 5)
    ]  # fmt: skip
    return network, *cells


def _lengths() -> tuple[Cell, ...]:
    trained_on_8 = Cell(
        "fast_weights, trained on 8", 100, "lengths/fast_weights-100-pairs8",
        ("experiment=table1", "model.hidden_size=100", "task.pairs=8"), 3,
    )  # fmt: skip
    return (*(cell for cell in _table1() if cell.column in (50, 100)), trained_on_8)


TARGETS = {
    target.name: target
    for target in (
        Target("table1", "Table 1: associative retrieval, test error in %", "units", _table1()),
        Target(
            "table2", "Table 2: MNIST in glimpses, test error in %", "features",
            _grid("table2", published.TABLE2), needs="MNIST",
        ),
        Target(
            "table3", "Table 3: facial expressions on drawn faces, test error in %", "units",
            _table3(), stand_in=True,
        ),
        Target("figure2", "Figure 2: associative retrieval with 50 units", "units", _figure2()),
        Target("figure5", "Figure 5: Catch with memory, mean reward", "game", _figure5()),
        Target("lengths", "Other numbers of pairs than in training, error in %", "units",
               _lengths()),
        Target("controls", "Table 1's network with one thing changed, test error in %", "units",
               _controls()),
    )
}  # fmt: skip
