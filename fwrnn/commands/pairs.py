"""``fwrnn evaluate RUN --pairs 1-26``: other numbers of pairs than those of training."""

import argparse
from collections.abc import Iterator

from fwrnn.config import network_label

LEAST, MOST = 1, 26  # letters, which are the keys


def numbers(word: str) -> list[int]:
    """The type of the option: "4", "1,8,16" or "1-26", in the order given."""
    found: list[int] = []
    for part in word.split(","):
        first, dash, last = part.partition("-")
        ends = [end.strip() for end in ((first, last) if dash else (first, first))]
        if not all(end.isdecimal() and LEAST <= int(end) <= MOST for end in ends):
            raise argparse.ArgumentTypeError(
                f"must be numbers from {LEAST} to {MOST}, as in 4, 1,8,16 or 1-26, got '{word}'"
            )
        low, high = map(int, ends)
        if low > high:
            raise argparse.ArgumentTypeError(f"goes from less to more, as in 1-26, got '{part}'")
        found += range(low, high + 1)
    return list(dict.fromkeys(found))


def print_rows(rows: Iterator[dict]) -> None:
    """A line for each number of pairs, as soon as it is known."""
    for k, row in enumerate(rows):
        if k == 0:
            name, trained = network_label(row["model"], row["control"]), row["trained_pairs"]
            changed = "".join(f", with {key}={value}" for key, value in row.get("set", {}).items())
            heading = f"{name}-{row['hidden_size']}, trained on {trained} pairs{changed}"
            print(f"{heading}; {row['data']}\n")
            print("pairs    error    95 % interval        wrong", flush=True)
        low, high = 100 * row["error_low"], 100 * row["error_high"]
        interval, wrong = f"{low:.2f} to {high:.2f} %", f"{row['wrong']:,} of {row['examples']:,}"
        print(
            f"{row['pairs']:5} {100 * row['error']:6.2f} %    {interval:<18}   {wrong}{_note(row)}",
            flush=True,
        )


def _note(row: dict) -> str:
    """What the line of the trained number of pairs says besides."""
    if row["pairs"] != row["trained_pairs"]:
        return ""
    if "reproduced" not in row:
        return "" if "set" in row else "   as in training"
    if row["reproduced"]:
        return "   as in training: as recorded, exactly"
    return f"   as in training: recorded was {100 * row['recorded_error']:.2f} %"
