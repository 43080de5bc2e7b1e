"""What ``fwrnn bench`` measured, as Markdown and as a picture; see ``fwrnn.commands.bench``."""

import io
from collections.abc import Callable

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

STYLES = {  # label, colour, marker: the layer in red, its plain forms in blue, torch.nn in grey
    "auto": ("FastWeightsRNN", "#D55E00", "o"),
    "nn.LSTM": ("nn.LSTM", "#222222", "^"),
    "nn.GRU": ("nn.GRU", "#7F7F7F", "v"),
    "nn.RNN": ("nn.RNN", "#BFBFBF", "<"),
    "attention": ("attention form", "#0072B2", "s"),
    "matrix": ("matrix form", "#56B4E9", "D"),
}
_LETTERS = (
    "T: steps of a sequence, B: sequences at once, I: inputs, H: units. "
    "Attention form, matrix form: the same layer without its fused kernel, in PyTorch's operations."
)
BARS = ("auto", "nn.GRU", "nn.RNN", "attention", "matrix")


def markdown(result: dict) -> str:
    """The tables, with a line on the machine; columns are aligned, so that it reads as text too."""
    about = result["machine"]
    parts = [f"# fwrnn bench, {result['mode']}", machine_line(about)]
    parts += [f"**{warning}**" for warning in result["warnings"]]
    parts.append(
        "Medians of samples taken in turn; × is the time as a multiple of `nn.LSTM`'s. `auto` is "
        f"the layer as it comes{_forms(result['steps'])}."
    )
    parts += [f"Not on this device: `{k}` ({why})." for k, why in result["unavailable"].items()]
    for kind, words in (
        ("training", "Training step: forward, backward to all parameters"),
        ("inference", "Inference step: forward alone"),
    ):
        rows = [row for row in result["steps"] if row["step"] == kind]
        parts += [f"## {words}, {_sizes(rows, 'B', 'I')}", _grid(rows, "TH", _ratio_cell)]
        parts += _left_out(rows, "TH")
    for table, words, letters in (
        ("small", "of few sequences", "BTH"),
        ("cells", "of a cell alone, × of `nn.LSTMCell`", "BH"),
    ):
        for kind in ("training", "inference"):
            rows = [row for row in result[table] if row["step"] == kind]
            parts += [f"## {kind.capitalize()} step {words}", _grid(rows, letters, _ratio_cell)]
            parts += _left_out(rows, letters)
    if rows := result["one_thread"]:
        parts += [f"## Training step on one thread, {_sizes(rows, 'B', 'I')}"]
        parts += [_grid(rows, "TH", _ratio_cell), *_left_out(rows, "TH")]
    for against, fixed in (("T", "BIH"), ("H", "TBI")):
        rows = [row for row in result["growth"] if row["against"] == against]
        parts.append(
            f"## Training step against {against}: time, peak memory, {_sizes(rows, *fixed)}"
        )
        parts += [_grid(rows, against, _growth_cell), *_left_out(rows, against)]
    parts += ["## Growth with the length of the sequence", _growth_ratios(result["growth_ratios"])]
    parts += ["## Share of the machine's rate of float32 matrix products", _share(result["share"])]
    parts += ["More than 100 %: it uses wider registers than PyTorch's matrix product does here."]
    parts += ["## Whole training updates, associative retrieval", _updates(result["updates"])]
    parts += _left_out(result["updates"], "", "model")
    return "\n\n".join(parts)


def machine_line(about: dict) -> str:
    """One line on what was measured with."""
    where = about["gpu"] or about["cpu"] or about["system"]
    versions = [f"{name} {about[name]}" for name in ("torch", "numba", "triton") if about[name]]
    words = [
        f"{where}, {about['device']}",
        f"{_count(about['threads'], 'thread')}, {_count(about['cores'], 'core')}",
        *versions,
        f"fwrnn {about['fwrnn']}{' at ' + about['commit'] if about['commit'] else ''}",
        about["date"][:10],
    ]
    return " · ".join(words)


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def milliseconds(value: float) -> str:
    """Three digits that matter, with a unit: "0.512 ms", "45.3 ms", "1.28 s"."""
    return f"{value / 1e3:.3g} s" if value >= 1000 else f"{value:.3g} ms"


def mebibytes(value: int) -> str:
    """A size for people: "16.2 MiB", "4.31 GiB"."""
    size = value / 2**20
    return f"{size / 1024:.3g} GiB" if size >= 1000 else f"{size:.3g} MiB"


def _forms(rows: list[dict]) -> str:
    """Which forms "auto" chose, when it is known."""
    chosen = dict.fromkeys(row["form"] for row in rows if row["contestant"] == "auto")
    names = [f"`{form}`" for form in chosen if form]
    return f", here in the form {' or '.join(names)}" if names else ""


def _sizes(rows: list[dict], *letters: str) -> str:
    return ", ".join(f"{letter}={rows[0][letter]:,}" for letter in letters) if rows else ""


def _table(header: list[str], rows: list[list[str]]) -> str:
    widths = [max(len(row[k]) for row in [header, *rows]) for k in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    padded = ([cell.ljust(w) for cell, w in zip(row, widths, strict=True)] for row in lines)
    return "\n".join(f"| {' | '.join(row)} |" for row in padded)


def _grid(rows: list[dict], columns: str, cell) -> str:
    """A row per contestant, a column per size."""
    sizes = list(dict.fromkeys(tuple(row[letter] for letter in columns) for row in rows))
    names = list(dict.fromkeys(row["contestant"] for row in rows))
    found = {(row["contestant"], tuple(row[k] for k in columns)): cell(row) for row in rows}
    header = [
        ", ".join(f"{letter}={value:,}" for letter, value in zip(columns, size, strict=True))
        for size in sizes
    ]
    body = [[f"`{name}`", *(found[name, size] for size in sizes)] for name in names]
    return _table(["", *header], body)


def _ratio_cell(row: dict) -> str:
    if row["skipped"]:
        return "left out"
    ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}× "
    return f"{ratio}({milliseconds(row['ms'])})"


def _growth_cell(row: dict) -> str:
    if row["skipped"]:
        return "left out"
    peak = "?" if row["peak_bytes"] is None else mebibytes(row["peak_bytes"])
    return f"{milliseconds(row['ms'])}, {peak}"


def _left_out(rows: list[dict], letters: str, name: str = "contestant") -> list[str]:
    """A sentence on what was left out and why, if anything was; and on memory not measured."""
    notes = []
    reasons = [
        f"`{row[name]}`{' at ' + _sizes([row], *letters) if letters else ''} ({row['skipped']})"
        for row in rows
        if row["skipped"]
    ]
    if reasons:
        notes.append(f"Left out: {'; '.join(reasons)}.")
    if any(row.get("peak_bytes", 0) is None and not row["skipped"] for row in rows):
        notes.append("Peak memory cannot be measured on this system.")
    return notes


def _multiple(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}×"


def _listed(rows: list[dict], columns: dict[str, Callable[[dict], str]]) -> str:
    """A table with a row for each, of columns by their headings."""
    return _table([*columns], [[cell(row) for cell in columns.values()] for row in rows])


def _growth_ratios(rows: list[dict]) -> str:
    return _listed(rows, {
        "": lambda row: f"`{row['contestant']}`",
        "T": lambda row: f"{row['T_short']:,} → {row['T_long']:,}",
        "time": lambda row: _multiple(row["time_ratio"]),
        "peak memory": lambda row: _multiple(row["memory_ratio"]),
        "linear would be": lambda row: _multiple(row["T_long"] / row["T_short"]),
    })  # fmt: skip


def _share(rows: list[dict]) -> str:
    return _listed(rows, {
        "": lambda row: f"`{row['contestant']}`",
        "size": lambda row: _sizes([row], *"TBIH"),
        "time": lambda row: milliseconds(row["ms"]),
        "GFLOP/s": lambda row: f"{row['gflops']:,.3g}",
        "matrix product, GFLOP/s": lambda row: f"{row['sgemm_gflops']:,.0f}",
        "share": lambda row: f"{row['share']:.1%}",
    })  # fmt: skip


def _updates(rows: list[dict]) -> str:
    return _listed([row for row in rows if not row["skipped"]], {
        "model": lambda row: f"`{row['model']}`",
        "units": lambda row: str(row["hidden_size"]),
        "batch": lambda row: str(row["batch_size"]),
        "updates/s": lambda row: f"{row['updates_per_second']:,.3g}",
        "time": lambda row: f"{_multiple(row['ratio'])} ({milliseconds(row['ms'])})",
    })  # fmt: skip


def png(result: dict) -> bytes:
    """The picture as the bytes of a PNG, 1,600 pixels wide."""
    file = io.BytesIO()
    figure = draw(result)
    figure.savefig(file, format="png", facecolor="white")
    return file.getvalue()


def draw(result: dict) -> Figure:
    """Bars of the training step above; time and memory against T, and in full against H, below."""
    series = ("T", "H") if result["mode"] == "full" else ("T",)
    rows = 1 + len(series)
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.06)
    figure = Figure(figsize=(10, 3.1 * rows + 0.7), dpi=160, layout=layout)
    grid = figure.add_gridspec(rows, 2, height_ratios=[1.15] + [1] * len(series))
    bars = figure.add_subplot(grid[0, :])
    _draw_bars(bars, [row for row in result["steps"] if row["step"] == "training"])
    for k, against in enumerate(series, start=1):
        points = [row for row in result["growth"] if row["against"] == against]
        _draw_growth(figure.add_subplot(grid[k, 0]), points, against, "time")
        _draw_growth(figure.add_subplot(grid[k, 1]), points, against, "memory")
    entries = dict(zip(*reversed(bars.get_legend_handles_labels()), strict=True))
    shown = {label: entries[label] for label, *_ in STYLES.values()}
    figure.legend(
        shown.values(),
        shown.keys(),
        loc="outside upper center",
        ncols=6,
        frameon=False,
        fontsize=10,
    )
    figure.supxlabel(
        f"{_LETTERS}\n{machine_line(result['machine'])}", fontsize=7.5, color="#444444"
    )
    return figure


def _draw_bars(axes: Axes, rows: list[dict]) -> None:
    """Groups of bars from the line of nn.LSTM: above it slower, below it faster."""
    sizes = list(dict.fromkeys((row["T"], row["H"]) for row in rows))
    found = {(row["contestant"], row["T"], row["H"]): row for row in rows}
    width = 0.78 / len(BARS)
    axes.set_yscale("log")
    for k, name in enumerate(BARS):
        label, colour, _ = STYLES[name]
        for group, size in enumerate(sizes):
            x = group + (k - (len(BARS) - 1) / 2) * width
            ratio = found.get((name, *size), {}).get("ratio")
            first = label if group == 0 else None
            axes.bar(x, (ratio or 1) - 1, 0.92 * width, bottom=1, color=colour, label=first)
            _label_bar(axes, x, ratio, bold=name == "auto")
    label, colour, _ = STYLES["nn.LSTM"]
    axes.axhline(1, color=colour, linewidth=1.6, label=label)
    axes.set_xticks(range(len(sizes)), [f"T = {steps}, H = {units}" for steps, units in sizes])
    axes.tick_params(axis="x", length=0)
    axes.margins(x=0.01, y=0.14)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="y", which="minor", length=0)
    _tidy(axes, f"Time of a training step, nn.LSTM = 1 ({_sizes(rows, 'B', 'I')}; less is faster)")


def _label_bar(axes: Axes, x: float, ratio: float | None, bold: bool) -> None:
    text = "left out"
    if ratio is not None:
        text = f"{ratio:.2f}" if ratio < 1 else f"{ratio:.1f}" if ratio < 10 else f"{ratio:.0f}"
    above = ratio is None or ratio >= 1
    axes.annotate(
        text,
        (x, ratio or 1),
        xytext=(0, 2 if above else -2),
        textcoords="offset points",
        ha="center",
        va="bottom" if above else "top",
        rotation=90 if ratio is None else 0,
        fontsize=9,
        fontweight="bold" if bold else "normal",
        color="#777777" if ratio is None else "#222222",
        path_effects=[withStroke(linewidth=2.5, foreground="white")],
    )


def _draw_growth(axes: Axes, rows: list[dict], against: str, what: str) -> None:
    """Lines of the time (ms) or memory (MiB) over T or H, a cross where something was left out."""
    column, unit, title = {
        "time": ("ms", 1, "Time of a training step, ms"),
        "memory": ("peak_bytes", 2**20, "Peak memory of a training step, MiB"),
    }[what]
    names = list(dict.fromkeys(row["contestant"] for row in rows))
    axes.set_xscale("log")
    axes.set_yscale("log")
    for k, name in enumerate(names):
        _, colour, marker = STYLES[name]
        mine = [row for row in rows if row["contestant"] == name]
        points = [(row[against], row[column] / unit) for row in mine if row[column]]
        style = {"color": colour, "marker": marker, "zorder": 3 - k / 10}
        axes.plot(*zip(*points, strict=True), linewidth=2, markersize=5.5, **style)
        missing = [row[against] for row in mine if row["skipped"]]
        height = [0.96 - 0.065 * k] * len(missing)
        axes.plot(
            missing, height, "x", color=colour, transform=axes.get_xaxis_transform(), markersize=6
        )
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * (high / low) ** 0.22)  # the crosses stay above the lines
    ticks = list(dict.fromkeys(row[against] for row in rows))
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    if not any(row[column] for row in rows):
        axes.text(0.5, 0.5, "cannot be measured here", ha="center", transform=axes.transAxes)
    fixed = ("B", "H") if against == "T" else ("B", "T")
    meaning = {"T": "T, steps of a sequence", "H": "H, units"}[against]
    left_out = ";  × left out" if any(row["skipped"] for row in rows) else ""
    axes.set_xlabel(f"{meaning} ({_sizes(rows, *fixed)}){left_out}")
    _tidy(axes, title)


def _tidy(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=11, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#E4E4E4", linewidth=0.8)
    axes.set_axisbelow(True)
