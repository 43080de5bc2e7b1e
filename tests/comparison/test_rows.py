"""Which runs share a row, what differs, and in what order."""

import pytest

from fwrnn.comparison.cells import row_labels
from fwrnn.comparison.found import find
from fwrnn.comparison.rows import ABSENT, by_task, commits_of, compare, short_names, sort_by
from fwrnn.errors import UserError
from tests.comparison.runs import write_game, write_run


def comparison(folder):
    return compare(list(find([folder])))


def test_seeds_are_gathered_and_the_best_row_is_first(tmp_path):
    for seed, error in enumerate((0.1, 0.2, 0.3)):
        write_run(tmp_path / f"a{seed}", ("seed", seed), error=error)
        other = ("seed", seed), ("model.hidden_size", 50), ("threads", 2), ("device", "cuda")
        write_run(tmp_path / f"b{seed}", *other, error=error / 2)
    both = comparison(tmp_path)
    assert both.names == {"model.hidden_size": "hidden_size"}
    assert [row.settings["model.hidden_size"] for row in both.rows] == [50, 20]
    assert [row.seeds for row in both.rows] == [[0, 1, 2]] * 2
    mean, half = both.rows[1].measured("test_error")
    assert mean == pytest.approx(0.2)
    assert half == pytest.approx(4.302653 * 0.1 / 3**0.5)
    assert both.common == {"task": "assoc_retrieval", "model": "lstm"}


def test_games_with_more_reward_come_first(tmp_path):
    write_game(tmp_path / "a", -0.5, ("model.hidden_size", 8))
    write_game(tmp_path / "b", 0.5, ("model.hidden_size", 16))
    assert [row.settings["model.hidden_size"] for row in comparison(tmp_path).rows] == [16, 8]


def test_of_equal_scores_the_better_validated_is_first(tmp_path):
    write_run(tmp_path / "a", ("model.hidden_size", 8), val_error=0.3)
    write_run(tmp_path / "b", ("model.hidden_size", 16), val_error=0.2)
    assert [row.settings["model.hidden_size"] for row in comparison(tmp_path).rows] == [16, 8]


def test_seed_that_was_run_twice_counts_once(tmp_path):
    for name, seed, error in (("a", 0, 0.1), ("b", 0, 0.1), ("c", 1, 0.2)):
        write_run(tmp_path / name, ("seed", seed), error=error)
    (row,) = comparison(tmp_path).rows
    assert len(row.runs) == 3
    assert row.seeds == [0, 1]
    assert row.measured("test_error").mean == pytest.approx(0.15)
    assert row.measured("test_error").half == pytest.approx(12.7062 * 0.05, rel=1e-4)


def test_setting_that_only_some_runs_know_makes_no_column_of_itself(tmp_path):
    write_run(tmp_path / "a", ("model.name", "fast_weights"), ("model.decay", 0.9))
    write_run(tmp_path / "b")
    both = comparison(tmp_path)
    assert list(both.names.values()) == ["model"]
    write_run(tmp_path / "c", ("model.name", "fast_weights"), ("model.decay", 0.5))
    three = comparison(tmp_path)
    assert list(three.names.values()) == ["model", "decay"]
    assert {row.settings["model.decay"] for row in three.rows} == {0.9, 0.5, ABSENT}


def test_default_that_came_later_does_not_part_old_runs_from_new_ones(tmp_path):
    write_run(tmp_path / "old")
    write_run(tmp_path / "new", ("model.head_dropout", 0.0), ("seed", 1))
    assert len(comparison(tmp_path).rows) == 1
    later = (("trainer.weight_decay", 0.0), ("trainer.select_by", "val_loss"), ("seed", 2))
    write_run(tmp_path / "newer", *later)
    other = (("task.name", "mnist_glimpses"), ("trainer.weight_decay", 0.05))
    write_run(tmp_path / "another", *other, ("trainer.select_by", "val_error"))
    assert sorted(len(row.runs) for row in comparison(tmp_path).rows) == [1, 3]


def test_folders_of_ones_own_are_different_data_and_places_of_mnist_are_not(tmp_path):
    for k, (folder, seed) in enumerate((folder, seed) for folder in "AB" for seed in (0, 1)):
        own = (("task.name", "facial_expression"), ("task.layout", "folders"))
        write_run(tmp_path / f"own{k}", *own, ("task.data_dir", folder), ("seed", seed))
        same = (("task.name", "mnist_glimpses"), ("task.data_dir", folder), ("seed", k))
        write_run(tmp_path / f"mnist{k}", *same)
    rows = comparison(tmp_path).rows
    assert sorted(len(row.runs) for row in rows) == [2, 2, 4]
    assert {row.settings["task.data_dir"] for row in rows} == {"A", "B", ABSENT}


def test_core_is_shown_where_it_says_more_than_the_name(tmp_path):
    write_run(tmp_path / "a", ("model.name", "x"), ("model.core", "rnn"))
    write_run(tmp_path / "b", ("model.name", "y"))
    assert list(comparison(tmp_path).names.values()) == ["model"]
    write_run(tmp_path / "c", ("model.name", "x"), ("model.core", "irnn"))
    assert list(comparison(tmp_path).names.values()) == ["model", "core"]


def test_true_is_not_one(tmp_path):
    for name, value in (("a", True), ("b", 1)):
        write_run(tmp_path / name, ("task.resample", value))
    assert len(comparison(tmp_path).rows) == 2


def test_names_are_short_where_they_are_unambiguous():
    keys = ["task.name", "model.name", "model.size", "task.size", "trainer.rate", "control"]
    assert list(short_names(keys).values()) == [
        "task", "model", "model.size", "task.size", "rate", "control",
    ]  # fmt: skip


def test_tasks_are_compared_apart(tmp_path):
    write_run(tmp_path / "a")
    write_game(tmp_path / "b", 0.5)
    assert [each.scores for each in by_task(list(find([tmp_path])))] == [["error"], ["reward"]]


def test_rows_are_sorted_by_settings_and_by_metrics(tmp_path):
    for size, error, rate in ((8, 0.1, 3.0), (16, 0.3, 1.0), (32, 0.2, 2.0)):
        write_run(
            tmp_path / str(size), ("model.hidden_size", size), error=error, updates_per_second=rate
        )

    def sizes(key):
        (sorted_,) = sort_by([comparison(tmp_path)], key)
        return [row.settings["model.hidden_size"] for row in sorted_.rows]

    assert sizes("hidden_size") == sizes("model.hidden_size") == [8, 16, 32]
    assert sizes("updates_per_second") == [16, 32, 8]
    assert sizes("test_error") == [8, 32, 16]
    with pytest.raises(UserError, match="no 'hiden_size', did you mean 'hidden_size'"):
        sizes("hiden_size")


def test_rewards_are_sorted_the_best_first(tmp_path):
    for reward in (0.1, 0.9):
        write_game(tmp_path / str(reward), reward, ("model.hidden_size", int(10 * reward)))
    (sorted_,) = sort_by([comparison(tmp_path)], "val_reward")
    assert [row.settings["model.hidden_size"] for row in sorted_.rows] == [9, 1]


def test_labels_have_no_more_than_tells_rows_apart(tmp_path):
    for model, rate in (("lstm", 0.1), ("rnn", 0.2)):
        write_run(tmp_path / model, ("model.name", model), ("trainer.learning_rate", rate))
    assert sorted(row_labels(comparison(tmp_path))) == ["lstm", "rnn"]
    write_run(tmp_path / "c", ("model.name", "rnn"), ("trainer.learning_rate", 0.3), error=0.5)
    labels = row_labels(comparison(tmp_path))
    assert sorted(labels) == ["lstm learning_rate=0.1", "rnn learning_rate=0.2",
                              "rnn learning_rate=0.3"]  # fmt: skip


def test_a_number_and_its_word_are_told_apart(tmp_path):
    for pairs in (4, "4"):
        write_run(tmp_path / repr(pairs), ("task.pairs", pairs))
    assert len(row_labels(comparison(tmp_path))) == 2


def test_every_commit_is_told_once_and_that_code_was_changed():
    recorded = [{"commit": "1234567890ab+"}, {"commit": "1234567890ab+ abcdef012345"}, {}]
    assert commits_of(recorded) == ["1234567+", "abcdef0"]
