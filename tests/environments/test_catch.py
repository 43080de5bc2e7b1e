"""Catch: its rules against a slow reading of the paper, Gymnasium's checks, and the autoresets."""

import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

import fwrnn.environments  # noqa: F401  (registers the games)
from fwrnn.environments.catch import Catch, CatchVectorEnv, Games

VARIANTS = {"fwrnn/CatchN16M3-v0": (16, 3), "fwrnn/CatchN24M5-v0": (24, 5)}


def test_gymnasium_has_nothing_to_complain_about():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("fwrnn/Catch-v0", *VARIANTS):
            for mode in (None, "rgb_array", "ansi"):
                check_env(gymnasium.make(name, render_mode=mode).unwrapped)


@pytest.mark.parametrize("name", VARIANTS)
def test_named_ids_are_the_papers_games(name):
    env = gymnasium.make(name)
    size, visible = VARIANTS[name]
    screen, _ = env.reset(seed=0)
    assert screen.shape == (size, size)
    shown, moves, ended = int(screen.any()), 0, False
    while not ended:
        screen, reward, ended, cut_short, _ = env.step(1)
        shown, moves = shown + int(screen.any()), moves + 1
        assert not cut_short
    assert (shown, moves) == (visible, size - 1)
    assert reward in (-1.0, 1.0)


def follow(size, visible, ball, paddle, actions):
    """The game by the paper's words, a dictionary of pixels at a time."""
    screens, reward = [], 0.0
    for frame in range(size):
        pixels = np.zeros((size, size))
        if frame < visible:
            pixels[frame, ball] = pixels[size - 1, paddle] = pixels[size - 1, paddle + 1] = 1
        screens.append(pixels)
        if frame == size - 1:
            reward = 1.0 if ball in (paddle, paddle + 1) else -1.0
        else:
            paddle += {0: -1, 1: 0, 2: 1}[actions[frame]]
            paddle = min(max(paddle, 0), size - 2)
    return screens, reward


@pytest.mark.parametrize(("size", "visible"), [(3, 1), (5, 2), (16, 3), (7, 7)])
def test_rules_are_those_of_a_slow_reading(size, visible):
    random = np.random.default_rng(0)
    outcomes = set()
    for seed in range(60):
        env = Catch(size, visible)
        screen, _ = env.reset(seed=seed)
        ball, paddle = env.games.ball[0], env.games.paddle[0]
        actions = random.integers(3, size=size - 1)
        screens, reward = follow(size, visible, ball, paddle, actions)
        np.testing.assert_array_equal(screen, screens[0])
        for move, action in enumerate(actions):
            screen, got, ended, _, info = env.step(action)
            np.testing.assert_array_equal(screen, screens[move + 1])
            assert ended == (move == size - 2)
            assert got == (reward if ended else 0.0)
        assert info == {"caught": reward > 0}
        outcomes.add(reward)
    assert outcomes == {1.0, -1.0}


def test_every_start_comes_equally_often():
    games = Games(60_000, 5, 5)
    games.start(np.random.default_rng(0))
    counts = np.bincount(games.ball * 4 + games.paddle, minlength=20)
    assert len(counts) == 20
    assert abs(counts - 3000).max() < 5 * np.sqrt(3000)


def test_same_seed_same_games():
    for make in (lambda: Catch(8, 3), lambda: CatchVectorEnv(5, 8, 3)):
        first, second = make(), make()
        np.testing.assert_array_equal(first.reset(seed=3)[0], second.reset(seed=3)[0])
        np.testing.assert_array_equal(first.reset()[0], second.reset()[0])
        assert not np.array_equal(first.reset(seed=4)[0], first.reset(seed=5)[0])


def test_vectorised_games_are_the_single_one():
    vector = gymnasium.make_vec("fwrnn/Catch-v0", num_envs=50, size=9, visible_frames=4)
    assert isinstance(vector.unwrapped, CatchVectorEnv)
    screens, _ = vector.reset(seed=0)
    games = vector.unwrapped.games
    starts = list(zip(games.ball, games.paddle, strict=True))
    assert vector.observation_space.contains(screens)
    actions = np.random.default_rng(1).integers(3, size=(8, 50))
    expected = [follow(9, 4, *start, actions[:, k]) for k, start in enumerate(starts)]
    for move in range(8):
        screens, rewards, ended, cut_short, info = vector.step(actions[move])
        for k, (wanted, _) in enumerate(expected):
            np.testing.assert_array_equal(screens[k], wanted[move + 1])
    assert ended.all() and not cut_short.any()
    assert rewards.tolist() == [reward for _, reward in expected]
    assert info["caught"].tolist() == [reward > 0 for _, reward in expected]


def finished(mode):
    """Three games at their ends, the last step's results, and the vector environment."""
    env = CatchVectorEnv(3, 4, 4, autoreset_mode=mode)
    env.reset(seed=0)
    assert env.metadata["autoreset_mode"] is AutoresetMode(mode)
    for _ in range(3):
        results = env.step([1, 1, 1])
    return env, results


def test_next_step_autoreset_begins_a_game_without_a_move():
    env, (screens, rewards, ended, _, _) = finished("NextStep")
    assert ended.all() and (rewards != 0).all() and screens[:, 3].any(axis=1).all()
    screens, rewards, ended, _, info = env.step([0, 0, 0])
    assert not ended.any() and not rewards.any() and info == {}
    assert screens[:, 0].any(axis=1).all()  # the balls are at the top


def test_same_step_autoreset_hands_over_the_last_screens():
    env, (screens, rewards, ended, _, info) = finished("SameStep")
    assert ended.all() and (rewards != 0).all()
    assert screens[:, 0].any(axis=1).all()
    assert all(screen[3].any() and not screen[0].any() for screen in info["final_obs"])
    assert info["_final_obs"].all() and info["final_info"]["caught"].dtype == bool
    assert not env.step([1, 1, 1])[2].any()


def test_disabled_autoreset_waits_for_a_mask():
    env, _ = finished(AutoresetMode.DISABLED)
    with pytest.raises(gymnasium.error.ResetNeeded, match="reset_mask"):
        env.step([1, 1, 1])
    screens, _ = env.reset(options={"reset_mask": np.array([True, False, True])})
    assert env.games.row.tolist() == [0, 3, 0]
    env.reset(options={"reset_mask": np.array([False, True, False])})
    assert not env.step([1, 1, 1])[2].any()


def test_renderings_show_the_hidden_game_in_another_shade():
    env = Catch(6, 2, render_mode="rgb_array")
    env.reset(seed=0)
    seen = env.render()
    assert seen.shape == (48, 48, 3) and seen.dtype == np.uint8
    for _ in range(2):
        screen, *_ = env.step(1)
    assert not screen.any()
    hidden = env.render()
    assert len(np.unique(hidden.reshape(-1, 3), axis=0)) == 3  # ground, paddle and ball
    assert not np.array_equal(seen[24, 24], hidden[24, 24])
    text = Catch(6, 2, render_mode="ansi")
    text.reset(seed=0)
    assert [sorted(set(line)) for line in text.render().split()] == [
        [".", "o"], ["."], ["."], ["."], ["."], [".", "="]
    ]  # fmt: skip
    for _ in range(5):
        text.step(2)
    assert ":" in text.render() and "." not in text.render()
    assert len(CatchVectorEnv(4, 6, 2, "ansi").render()) == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 2}, "size must be 3 or more, got 2"),
        ({"visible_frames": 0}, "visible_frames must lie in 1 … size = 16, got 0"),
        ({"visible_frames": 17}, "got 17"),
        ({"render_mode": "human"}, "rgb_array, ansi, got 'human'"),
    ],
)
def test_bad_arguments_say_what_is_wrong(settings, message):
    for make in (Catch, CatchVectorEnv):
        with pytest.raises(ValueError, match=message):
            make(**settings)


def test_bad_moves_say_what_is_wrong():
    env = Catch(3, 1)
    env.reset(seed=0)
    with pytest.raises(gymnasium.error.InvalidAction, match="got 3"):
        env.step(3)
    env.step(1)
    env.step(1)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(1)
    vector = CatchVectorEnv(2, 3, 1)
    with pytest.raises(gymnasium.error.ResetNeeded, match="reset"):
        vector.step([1, 1])
    vector.reset(seed=0)
    for actions in ([1], [1, 3], [-1, 1], [0.5, 1.0]):
        with pytest.raises(gymnasium.error.InvalidAction):
            vector.step(actions)
    for mask in ([1, 1], np.array([True])):
        with pytest.raises(ValueError, match="reset_mask must be 2 booleans"):
            vector.reset(options={"reset_mask": mask})
    with pytest.raises(gymnasium.error.ResetNeeded):
        Catch().step(1)
    with pytest.raises(ValueError, match="num_envs"):
        CatchVectorEnv(0)


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_a_list_of_seeds_gives_the_games_of_as_many_single_environments(mode):
    seeds, size = [3, 1, 4, 1], 5
    many = CatchVectorEnv(4, size, 2, autoreset_mode=mode)
    singles = gymnasium.vector.SyncVectorEnv(
        [lambda: Catch(size, 2) for _ in seeds], autoreset_mode=mode
    )
    assert (many.reset(seed=seeds)[0] == singles.reset(seed=seeds)[0]).all()
    random = np.random.default_rng(0)
    for _ in range(4 * size):
        actions = random.integers(0, 3, 4)
        for ours, theirs in zip(many.step(actions)[:4], singles.step(actions)[:4], strict=True):
            assert (ours == theirs).all()
    with pytest.raises(ValueError, match="a list of 4, one per game, got a list of 2"):
        many.reset(seed=[1, 2])
    first = many.reset(seed=7)[0]
    assert (many.reset(seed=7)[0] == first).all()  # one generator for all again


def test_games_without_a_seed_of_their_own_in_a_list_go_on_as_they_were_seeded():
    many = CatchVectorEnv(3, autoreset_mode="Disabled")
    singles = gymnasium.vector.SyncVectorEnv([Catch] * 3, autoreset_mode="Disabled")
    mask = np.array([False, True, True])
    resets = [{"seed": [1, 2, 3]}, {"seed": [None, 7, None]}, {}]
    resets += [{"seed": [4, None, 5], "options": {"reset_mask": mask}}, {}]
    for options in resets:
        ours, theirs = (games.reset(**options)[0] for games in (many, singles))
        assert (ours == theirs).all()


def test_make_vec_takes_a_list_of_seeds():
    many = gymnasium.make_vec("fwrnn/Catch-v0", num_envs=4)
    assert many.reset(seed=[0, 1, 2, 3])[0].shape == (4, 16, 16)
