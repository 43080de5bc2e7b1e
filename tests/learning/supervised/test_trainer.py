"""Learning-rate schedules, stopping rules and divergence."""

import csv
import io
import math

import pytest
import torch

from fwrnn.commands.train import train
from fwrnn.errors import RunFailed, UserError
from fwrnn.learning import loop
from fwrnn.learning.loop import learning_rate
from fwrnn.learning.schema import Schedule
from fwrnn.learning.supervised.scoring import Score, score
from tests.commands.compose import compose


def test_learning_rate_follows_its_schedule(tiny):
    config = compose(*tiny, "trainer.max_updates=100", "trainer.learning_rate=1").trainer
    config.schedule = Schedule.constant
    assert learning_rate(99, config) == 1
    config.schedule = Schedule.linear
    assert learning_rate(25, config) == pytest.approx(0.75)
    config.schedule = Schedule.cosine
    assert learning_rate(0, config) == 1
    assert learning_rate(50, config) == pytest.approx(0.5)
    assert learning_rate(99, config) == pytest.approx((1 + math.cos(math.pi * 0.99)) / 2)
    config.warmup = 0.1
    assert learning_rate(0, config) == pytest.approx(0.1)


def test_stops_once_solved_and_looks_like_an_end(tiny, tmp_path, monkeypatch, caplog):
    bars = []

    class Bar(loop.tqdm):
        def close(self):
            bars.append((self.n, self.total, self.desc))
            super().close()

    def shown(**settings):
        return Bar(**settings | {"file": io.StringIO(), "disable": False})

    monkeypatch.setattr(loop, "tqdm", shown)
    caplog.set_level("INFO")
    solved = ["trainer.solved_loss=10.0"]
    metrics = train(compose(*tiny, *solved), tmp_path)
    assert metrics["stopped"] == "solved"
    assert metrics["updates"] == 5
    assert bars[0] == (5, 5, "solved: ")
    assert "solved, so training ended after update 5" in caplog.text


def test_stops_without_progress(tiny, tmp_path):
    stuck = ["trainer.learning_rate=1e-30", "trainer.patience=10"]
    metrics = train(compose(*tiny, *stuck), tmp_path)
    assert metrics["stopped"] == "no progress"
    assert metrics["updates"] == 15
    assert metrics["best_update"] == 5


def test_patience_waits_for_a_validation_that_is_no_better(tiny, tmp_path, monkeypatch):
    from fwrnn.learning.supervised import trainer as supervised

    scores = iter([(0.5, 2.0), (0.4, 1.0), (0.4, 1.5)])
    monkeypatch.setattr(supervised, "evaluate", lambda *args: Score(*next(scores), 0, 1))
    metrics = train(compose(*tiny, "trainer.patience=1"), tmp_path)
    assert (metrics["updates"], metrics["best_update"]) == (15, 10)


def test_curve_has_a_row_per_validation(tiny, tmp_path):
    metrics = train(compose(*tiny), tmp_path)
    rows = list(csv.DictReader((tmp_path / "curve.csv").open()))
    assert [int(row["updates"]) for row in rows] == [5, 10, 15, 20]
    assert min(float(row["val_loss"]) for row in rows) == metrics["val_loss"]


def test_patience_is_refused_where_nothing_is_held_out(tmp_path):
    pytest.importorskip("sklearn")
    words = ["task=mnist_glimpses", "task.dataset=digits", "task.train_on_all=true"]
    with pytest.raises(UserError, match="trainer.patience waits for better validations"):
        train(compose(*words, "trainer.patience=500"), tmp_path)


def test_divergence_says_where_and_what_to_try(tiny, tmp_path, monkeypatch):
    from fwrnn.learning.supervised import trainer as supervised

    real, calls = supervised.F.cross_entropy, []

    def explode(logits, targets, **settings):
        calls.append(None)
        return real(logits, targets, **settings) * (math.nan if len(calls) == 13 else 1)

    monkeypatch.setattr(supervised.F, "cross_entropy", explode)
    with pytest.raises(RunFailed, match=r"nan at update \d+.*learning_rate.*last good .*last\.pt"):
        train(compose(*tiny), tmp_path)
    saved = torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)
    assert all(value.isfinite().all() for value in saved["model"].values())
    assert not (tmp_path / "metrics.json").exists()


@pytest.mark.parametrize(("select_by", "best"), [("val_loss", 10), ("val_error", 15)])
def test_best_weights_have_least_of_what_was_chosen(tiny, tmp_path, monkeypatch, select_by, best):
    from fwrnn.learning.supervised import trainer as supervised

    scores = iter([(0.5, 2.0), (0.4, 1.0), (0.3, 1.2), (0.35, 1.1)])
    monkeypatch.setattr(supervised, "evaluate", lambda *args: Score(*next(scores), 0, 1))
    metrics = train(compose(*tiny, f"trainer.select_by={select_by}"), tmp_path)
    assert metrics["best_update"] == best


def test_solved_by_the_loss_whatever_the_best_weights_are_chosen_by(tiny, tmp_path, monkeypatch):
    from fwrnn.learning.supervised import trainer as supervised

    scores = iter([(0.1, 2.0), (0.2, 0.5), (0.1, 0.5), (0.1, 0.5), (0.1, 0.5)])
    monkeypatch.setattr(supervised, "evaluate", lambda *args: Score(*next(scores), 0, 1))
    stops = ["trainer.select_by=val_error", "trainer.solved_loss=1"]
    metrics = train(compose(*tiny, *stops), tmp_path)
    assert (metrics["stopped"], metrics["updates"], metrics["best_update"]) == ("solved", 10, 5)


def test_what_is_no_answer_is_wrong():
    logits = torch.tensor([[torch.nan, 0.0], [1.0, 0.0], [0.0, torch.nan], [torch.inf, 0.0]])
    assert score(logits, torch.tensor([0, 0, 1, 0])).wrong == 2
