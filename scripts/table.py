"""Print the README's table of results, in Markdown, from the runs in outputs/paper/table1.

python scripts/table1.py
"""

import json
from pathlib import Path

RUNS = Path(__file__).parents[1] / "outputs" / "paper" / "table1"
PUBLISHED = {  # test error in per cent, arXiv:1610.06258v3, table 1
    "fast_weights": {20: 1.81, 50: 0.0, 100: 0.0},
    "associative_lstm": {20: 60.13, 50: 1.62, 100: 0.0},
    "lstm": {20: 60.81, 50: 1.85, 100: 0.0},
    "irnn": {20: 62.11, 50: 60.23, 100: 0.34},
}


def main() -> None:
    cells: dict[tuple[str, int], list[dict]] = {}
    for path in sorted(RUNS.glob("*/seed*/metrics.json")):
        metrics = json.loads(path.read_text())
        cells.setdefault((metrics["model"], metrics["hidden_size"]), []).append(metrics)
    print("| model | units | the paper's | test error, seed by seed | updates | commit |")
    print("|---|---|---|---|---|---|")
    for (model, size), runs in sorted(cells.items()):
        errors = ", ".join(f"{100 * run['test_error']:.3g} %" for run in runs)
        updates = ", ".join(f"{run['updates']:,}" for run in runs)
        commits = ", ".join(sorted({f"`{run['commit'][:7]}`" for run in runs}))
        published = f"{PUBLISHED[model][size]} %" if model in PUBLISHED else "–"
        print(f"| `{model}` | {size} | {published} | {errors} | {updates} | {commits} |")


if __name__ == "__main__":
    main()
