"""What ``fwrnn battery`` found, as a table."""


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
        f"Where nn.RNN learns, FastWeightsRNN ends within 1.05 of its loss in {close} of "
        f"{len(learned)} cells; it is ahead in {ahead} of all {len(cells)}. Retrieval is solved in "
        f"{solved} of {len(recalled)}. Means over up to "
        f"{max((cell['seeds'] for cell in cells), default=0)} seeds; nats, and squares for adding; "
        "**bold**: ours is more than 1.05 of nn.RNN's where that learns."
    )


def _losses(cell: dict | None) -> str:
    if cell is None:
        return ""
    text = f"{cell['fast_weights_loss']:.4f} / {cell['rnn_loss']:.4f}"
    return text if cell["close"] or not cell["learns"] else f"**{text}**"
