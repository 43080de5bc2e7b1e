"""Random search by a sweep over seeds: what a trial draws."""

import runpy
from pathlib import Path
from statistics import median

import pytest

from fwrnn.cli import main
from fwrnn.commands.resolvers import draw
from tests.commands.compose import compose

ROOT = Path(__file__).parents[2]
SEARCH = "experiment=figure5_search"


def test_a_trial_draws_the_same_everywhere_and_for_every_core():
    assert draw(100, "learning_rate", "loguniform", 3e-4, 3e-3) == 0.001283
    trials = [compose(SEARCH, f"model={core}", "seed=101") for core in ("fast_weights", "lstm")]
    assert trials[0].trainer == trials[1].trainer
    assert trials[0].model.fast_lr != compose("task=catch").model.fast_lr
    assert trials[0].trainer != compose(SEARCH, "seed=102").trainer
    again = compose(SEARCH, "model=fast_weights", "trial=101", "seed=7")
    assert (again.trainer, again.model, again.seed) == (trials[0].trainer, trials[0].model, 7)


@pytest.mark.parametrize("core", ["fast_weights", "lstm", "rnn"])
def test_the_tuned_settings_are_those_of_the_best_repeated_trial(core):
    script = runpy.run_path(str(ROOT / "scripts" / "rank_trials.py"))
    trials = script["trials_of"](ROOT / "outputs" / "paper" / "figure5" / "search-n16-2000")
    best = min(trials[16, core], key=script["rank"])[0]["searched"]
    tuned = compose("task=catch", f"model={core}")
    for key, value in best.items():
        group, name = key.split(".")
        chosen = getattr(getattr(tuned, group), name, None)
        assert chosen == (value if value is None else pytest.approx(value, rel=0.02))


def test_draws_lie_where_they_should():
    rates = [draw(seed, "a", "loguniform", 1e-4, 1e-2) for seed in range(400)]
    assert min(rates) >= 1e-4 and max(rates) <= 1e-2
    assert 6e-4 < median(rates) < 1.7e-3
    decays = [draw(seed, "b", "uniform", 0.5, 1.0) for seed in range(400)]
    assert 0.5 <= min(decays) < 0.51 and 0.99 < max(decays) <= 1.0
    assert {draw(seed, "c", "choice", 1, 2, 3) for seed in range(50)} == {1, 2, 3}
    with pytest.raises(ValueError, match="uniform, loguniform and choice, got 'normal'"):
        draw(0, "d", "normal", 0, 1)


def test_a_wrong_draw_is_one_line(capsys):
    assert main(["train", "trainer.learning_rate=${draw:0,a,normal,0,1}"]) == 2
    error = capsys.readouterr().err
    assert "got 'normal'" in error and error.count("\n") == 1
