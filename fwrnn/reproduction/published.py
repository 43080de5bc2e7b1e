"""What the paper has: the numbers of its tables, and its curves, read off the figures.

Source: arXiv:1610.06258v3, tables 1 to 3, figures 2 and 5.
"""

import csv
from pathlib import Path

TABLE1 = {  # associative retrieval, test error in per cent, by recurrent units
    "irnn": {20: 62.11, 50: 60.23, 100: 0.34},
    "lstm": {20: 60.81, 50: 1.85, 100: 0.0},
    "associative_lstm": {20: 60.13, 50: 1.62, 100: 0.0},
    "fast_weights": {20: 1.81, 50: 0.0, 100: 0.0},
}
TABLE2 = {  # MNIST in glimpses, test error in per cent, by features
    "irnn": {50: 12.95, 100: 1.95, 200: 1.42},
    "lstm": {50: 12.0, 100: 1.55, 200: 1.10},
    "convnet": {50: 1.81, 100: 1.00, 200: 0.90},
    "multilevel": {50: 7.21, 100: 1.30, 200: 0.85},
}
TABLE3 = {  # facial expressions of Multi-PIE, test error in per cent, 200 units
    "irnn": {200: 18.89},
    "lstm": {200: 18.68},
    "convnet": {200: 11.77},
    "multilevel": {200: 13.66},
}
ROUNDING = 0.005
"""Half of the last digit of a number in a table."""

CURVES = Path(__file__).with_name("curves")


def curve(figure: str, model: str) -> tuple[list[float], list[float]]:
    """The points of a model's curve in "figure2" (updates, nats), or in "figure5-n16" or
    "figure5-n24" (steps of a unit that is not stated, average reward). Empty where it has none.
    """
    with (CURVES / f"{figure}.csv").open(encoding="utf-8") as file:
        rows = csv.reader(line for line in file if not line.startswith("#"))
        points = [(float(x), float(y)) for name, x, y in rows if name == model]
    return [x for x, _ in points], [y for _, y in points]
