"""Print a table of the README, in Markdown, from the runs kept in outputs/paper.

    python scripts/table.py table1

A row per model and size; errors seed by seed and their mean, in per cent.
"""

import argparse
import json
from pathlib import Path
from statistics import mean, stdev

RUNS = Path(__file__).parents[1] / "outputs" / "paper"
PUBLISHED = {  # test errors in per cent, arXiv:1610.06258v3
    "table1": {
        "fast_weights": {20: 1.81, 50: 0.0, 100: 0.0},
        "associative_lstm": {20: 60.13, 50: 1.62, 100: 0.0},
        "lstm": {20: 60.81, 50: 1.85, 100: 0.0},
        "irnn": {20: 62.11, 50: 60.23, 100: 0.34},
    },
    "table2": {
        "multilevel": {50: 7.21, 100: 1.30, 200: 0.85},
        "convnet": {50: 1.81, 100: 1.00, 200: 0.90},
        "lstm": {50: 12.0, 100: 1.55, 200: 1.10},
        "irnn": {50: 12.95, 100: 1.95, 200: 1.42},
    },
    "table3": {  # of another data set, Multi-PIE, and accuracies there
        "multilevel": {200: 100 - 86.34},
        "convnet": {200: 100 - 88.23},
        "lstm": {200: 100 - 81.32},
        "irnn": {200: 100 - 81.11},
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", choices=PUBLISHED)
    table = parser.parse_args().table
    cells: dict[tuple[str, int], list[dict]] = {}
    for path in sorted((RUNS / table).glob("*/seed*/metrics.json")):
        metrics = json.loads(path.read_text(encoding="utf-8"))
        cells.setdefault((metrics["model"], metrics["hidden_size"]), []).append(metrics)
    published = PUBLISHED[table]
    order = [*published, *sorted({model for model, _ in cells} - set(published))]
    print("| model | units | the paper's | test error | seed by seed | updates | commit |")
    print("|---|---|---|---|---|---|---|")
    for model, size in sorted(cells, key=lambda cell: (order.index(cell[0]), cell[1])):
        print(row(model, size, cells[model, size], published.get(model, {}).get(size)))


def row(model: str, size: int, runs: list[dict], published: float | None) -> str:
    """One line of the table; the paper has no such cell where ``published`` is None."""
    errors = [100 * run["test_error"] for run in runs]
    spread = f" ± {decimals(stdev(errors))}" if len(errors) > 1 else ""
    listed = ", ".join(decimals(error) for error in errors)
    papers = "–" if published is None else f"{published:.2f} %"
    updates = ", ".join(f"{n:,}" for n in sorted({run["updates"] for run in runs}))
    commits = ", ".join(sorted({f"`{run['commit'][:7]}`" for run in runs}))
    return (
        f"| `{model}` | {size} | {papers} | {decimals(mean(errors))}{spread} % | {listed} | "
        f"{updates} | {commits} |"
    )


def decimals(percent: float) -> str:
    """Two of them, or three where two would show none."""
    return f"{percent:.3f}" if 0 < percent < 0.01 else f"{percent:.2f}"


if __name__ == "__main__":
    main()
