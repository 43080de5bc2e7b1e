"""The picture: drawn whatever there is to draw, and what is drawn is what was recorded."""

import numpy as np
import pytest

from fwrnn.comparison import chart
from fwrnn.comparison.found import find
from fwrnn.comparison.rows import by_task
from tests.comparison.runs import write_game, write_run


def drawn(folder):
    """The comparisons and curves of a folder, what was wrong, and the picture's axes."""
    comparisons = by_task(list(find([folder])))
    runs = [run for each in comparisons for run in each.runs]
    curves, troubles = chart.read_curves(runs)
    assert chart.png(comparisons, curves).startswith(b"\x89PNG")
    return troubles, chart.draw(comparisons, curves).axes


def test_line_is_the_mean_and_band_the_range(tmp_path):
    for seed, shift in enumerate((0.0, 0.1)):
        run = write_run(tmp_path / str(seed), ("seed", seed))
        lines = [f"{update},{0.5 + shift - update / 1000}" for update in (10, 100)[: 2 - seed]]
        (run / "curve.csv").write_text("\n".join(["updates,val_error", *lines]))
    troubles, (curves, bars) = drawn(tmp_path)
    assert troubles == []
    np.testing.assert_allclose(curves.lines[0].get_ydata(), [54, (40 + 59) / 2])
    band = curves.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((40, 59))  # the second run ended at 59
    assert bars.patches[0].get_width() == pytest.approx(10)
    assert len(bars.collections[0].get_offsets()) == 2
    assert curves.get_yscale() == bars.get_xscale() == "linear"
    assert "line mean, band lowest to highest seed" in curves.get_title("left")
    assert "bar mean, points seeds" in bars.get_title("left")


def test_errors_over_decades_are_logarithmic_and_zeros_are_drawn(tmp_path):
    for size, error in ((8, 0.5), (16, 0.001), (32, 0.0)):
        run = write_run(tmp_path / str(size), ("model.hidden_size", size), error=error)
        (run / "curve.csv").write_text(f"updates,val_error\n1,0.9\n2,{error}\n")
    _, (curves, bars) = drawn(tmp_path)
    assert curves.get_yscale() == bars.get_xscale() == "log"
    assert bars.get_xlabel() == "0 is drawn at 0.05"
    assert curves.get_xlabel() == "updates; lines have the numbers of the bars"
    assert min(curves.lines[0].get_ydata()) == pytest.approx(0.05)


def test_rewards_are_linear(tmp_path):
    for size, reward in ((8, -0.9), (16, 0.001)):
        write_game(tmp_path / str(size), reward, ("model.hidden_size", size))
    _, (_, bars) = drawn(tmp_path)
    assert bars.get_xscale() == "linear"


def test_broken_lines_of_a_curve_are_left_out_and_told_of(tmp_path):
    run = write_run(tmp_path / "run")
    text = "updates,val_error\n1,0.5\n2\n3,x\n4,nan\n5,0.4,7\n6,1e999\n7,0.3\n\n"
    (run / "curve.csv").write_bytes(text.encode() + b"8,\xff\0\n")
    troubles, (curves, _) = drawn(tmp_path)
    np.testing.assert_array_equal(curves.lines[0].get_xdata(), [1, 7])
    assert [trouble.words for trouble in troubles] == ["curve.csv: 7 broken lines, not drawn"]


@pytest.mark.parametrize(
    "text", [None, "", "a,b\n1,2\n", "updates,val_error\n", "\0", "x" * 200_000]
)
def test_run_without_a_curve_still_has_its_bar(text, tmp_path):
    run = write_run(tmp_path / "run")
    (run / "curve.csv").unlink()
    if text is not None:
        (run / "curve.csv").write_text(text)
    troubles, (curves, bars) = drawn(tmp_path)
    assert len(troubles) == (text != "updates,val_error\n")
    assert not curves.lines
    assert len(bars.patches) == 1


def test_of_many_rows_the_first_are_drawn_and_that_is_said(tmp_path):
    for size in range(1, 31):
        write_run(tmp_path / str(size), ("model.hidden_size", size), error=size / 100)
    comparisons = by_task(list(find([tmp_path])))
    figure = chart.draw(comparisons, {})
    assert len(figure.axes[1].patches) == chart.MOST_ROWS
    assert "the first 24 rows" in figure.subfigs[0].get_suptitle()


def test_text_from_files_is_no_formula_and_no_markup(tmp_path):
    write_run(tmp_path / "a", ("model.name", r"_$\frac{$<script>&"), ("model.hidden_size", 8))
    write_run(tmp_path / "b", ("model.name", "模型"), ("trainer.x", 1e99), error=9e98)
    drawn(tmp_path)
    svg = chart.svg(by_task(list(find([tmp_path]))), {})
    assert svg.startswith("<svg")
    assert "<script" not in svg


def test_nothing_finished_is_a_picture_that_says_so():
    assert chart.png([], {}).startswith(b"\x89PNG")


def test_numbers_at_the_lines_are_spread_and_stay_inside():
    np.testing.assert_allclose(chart._spread([0.0, 0.01, 0.9], 0.1), [0.0, 0.1, 0.9])
    np.testing.assert_allclose(chart._spread([0.98, 0.99, 1.0], 0.1), [0.8, 0.9, 1.0])
