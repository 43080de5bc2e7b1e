"""Partially observable Catch, section 4.4 of the paper, as a Gymnasium environment.

A ball of one pixel starts in the top row of a screen of N×N pixels and falls by one row a frame; a
paddle two pixels wide in the bottom row stays, or moves by one pixel. In the N-th frame the ball is
in the bottom row and the game ends: the reward is 1 if the paddle touches the ball, else -1. After
the M-th frame the screen that the player sees is blank: where the ball will land, and where the
paddle is, must be remembered.

The paper leaves the start open. Ours: ball and paddle start in columns drawn independently and
uniformly, and a paddle at a wall stays there when it moves into it.
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium.utils.seeding import np_random
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

ACTIONS = ("left", "stay", "right")
PADDLE = 2  # pixels


class Games:
    """Any number of games side by side, as arrays with a number per game.

    ``ball`` is the ball's column, ``paddle`` the column of the paddle's left pixel, ``row`` the
    ball's row, which is also how many moves have been made.

    Raises:
        ValueError: ``size`` below 3, or ``visible_frames`` outside of 1 … ``size``.
    """

    def __init__(self, count: int, size: int, visible_frames: int):
        if size < 3:
            raise ValueError(f"size must be 3 or more, got {size}; the paper has 16 and 24")
        if not 1 <= visible_frames <= size:
            raise ValueError(
                f"visible_frames must lie in 1 … size = {size}, got {visible_frames}; "
                "with as many as there are frames everything is seen"
            )
        self.count, self.size, self.visible_frames = count, size, visible_frames
        self.ball, self.paddle, self.row = np.zeros((3, count), dtype=np.int64)

    def start(self, random: np.random.Generator, which: np.ndarray | None = None) -> None:
        """Begin anew the games of a mask ``which`` (count), or all of them."""
        which = np.ones(self.count, dtype=bool) if which is None else which
        fresh = int(which.sum())
        self.ball[which] = random.integers(self.size, size=fresh)
        self.paddle[which] = random.integers(self.size - PADDLE + 1, size=fresh)
        self.row[which] = 0

    def move(self, actions: np.ndarray) -> np.ndarray:
        """Make a move in every game that is not over; returns the rewards (count), float64."""
        running = ~self.over
        moved = np.clip(self.paddle + actions - 1, 0, self.size - PADDLE)
        self.paddle = np.where(running, moved, self.paddle)
        self.row += running
        return np.where(running & self.over, 2.0 * self.caught - 1.0, 0.0)

    @property
    def over(self) -> np.ndarray:
        """Which games have ended. (count), bool."""
        return self.row == self.size - 1

    @property
    def caught(self) -> np.ndarray:
        """In which games the paddle is below the ball. (count), bool."""
        return (self.paddle <= self.ball) & (self.ball < self.paddle + PADDLE)

    @property
    def visible(self) -> np.ndarray:
        """In which games this frame is shown. (count), bool."""
        return self.row < self.visible_frames

    def screens(self) -> np.ndarray:
        """What the players see, 1 where there is something. (count, N, N) bytes."""
        screens = np.zeros((self.count, self.size, self.size), dtype=np.uint8)
        shown = np.flatnonzero(self.visible)
        screens[shown, self.row[shown], self.ball[shown]] = 1
        for pixel in range(PADDLE):
            screens[shown, -1, self.paddle[shown] + pixel] = 1
        return screens


def draw(games: Games, index: int, pixels: int = 8) -> np.ndarray:
    """A game as (N · pixels, N · pixels, 3) bytes: dark where the player sees it, else grey."""
    seen = bool(games.visible[index])
    picture = np.full((games.size, games.size, 3), 18 if seen else 96, dtype=np.uint8)
    left = games.paddle[index]
    picture[-1, left : left + PADDLE] = (250, 250, 250) if seen else (170, 170, 170)
    picture[games.row[index], games.ball[index]] = (255, 190, 60) if seen else (200, 160, 90)
    return picture.repeat(pixels, axis=0).repeat(pixels, axis=1)


def write(games: Games, index: int) -> str:
    """A game as text: ``o`` is the ball, ``=`` the paddle; ``:`` fills what is not shown."""
    empty = "." if games.visible[index] else ":"
    rows = [[empty] * games.size for _ in range(games.size)]
    for pixel in range(PADDLE):
        rows[-1][games.paddle[index] + pixel] = "="
    rows[games.row[index]][games.ball[index]] = "o"
    return "\n".join("".join(row) for row in rows) + "\n"


_RENDERERS = {"rgb_array": draw, "ansi": write}


def _screen_space(size: int) -> gymnasium.spaces.Box:
    return gymnasium.spaces.Box(0, 1, (size, size), np.uint8)


def _check_render_mode(render_mode: str | None) -> None:
    if render_mode is not None and render_mode not in _RENDERERS:
        raise ValueError(
            f"render_mode must be None or one of {', '.join(_RENDERERS)}, got {render_mode!r}"
        )


class Catch(gymnasium.Env):
    """One game, ``fwrnn/Catch-v0``.

    Args:
        size: N, pixels along a side, and frames in a game.
        visible_frames: M, frames that are shown.
        render_mode: "rgb_array", "ansi" or None. A rendering shows the hidden frames too, in grey.

    Observations are (N, N) bytes, 0 or 1. Actions: 0 left, 1 stay, 2 right. ``info`` has
    ``caught`` when a game has ended. A game takes N - 1 moves; it is never truncated.

    Raises:
        ValueError: an argument out of range.
    """

    metadata = {"render_modes": list(_RENDERERS), "render_fps": 8}

    def __init__(self, size: int = 16, visible_frames: int = 3, render_mode: str | None = None):
        _check_render_mode(render_mode)
        self.games = Games(1, size, visible_frames)
        self.render_mode = render_mode
        self.observation_space = _screen_space(size)
        self.action_space = gymnasium.spaces.Discrete(len(ACTIONS))

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        self.games.start(self.np_random)
        return self.games.screens()[0], {}

    def step(self, action):
        if not self.action_space.contains(action):
            raise gymnasium.error.InvalidAction(f"actions are 0, 1 and 2, got {action!r}")
        if self._np_random is None or self.games.over[0]:
            raise gymnasium.error.ResetNeeded("the game is over; call reset() before step()")
        (reward,) = self.games.move(np.array([action])).tolist()
        ended = bool(self.games.over[0])
        info = {"caught": bool(self.games.caught[0])} if ended else {}
        return self.games.screens()[0], reward, ended, False, info

    def render(self) -> np.ndarray | str | None:
        return _RENDERERS[self.render_mode](self.games, 0) if self.render_mode else None


class CatchVectorEnv(VectorEnv):
    """Thousands of games in one NumPy step, as ``gymnasium.make_vec`` makes them.

    Args:
        num_envs: games.
        size, visible_frames, render_mode: as for ``Catch``.
        autoreset_mode: what follows the end of a game, one of Gymnasium's three modes. NEXT_STEP
            (the default): the next ``step`` ignores the action and begins a game. SAME_STEP: the
            observation is already the next game's, and ``info["final_obs"]`` has the last one.
            DISABLED: nothing; call ``reset(options={"reset_mask": mask})``.

    One random generator serves all games, seeded by ``reset(seed=…)``: the games of a seed are the
    same in every process, but not those that as many single environments would play. With a list of
    seeds, one a game, they are, and each game has a generator of its own from then on, which None
    in a later list leaves as it is.

    Raises:
        ValueError: an argument out of range.
    """

    metadata = {
        "render_modes": list(_RENDERERS),
        "render_fps": 8,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        size: int = 16,
        visible_frames: int = 3,
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    ):
        _check_render_mode(render_mode)
        if num_envs < 1:
            raise ValueError(f"num_envs must be 1 or more, got {num_envs}")
        self.games = Games(num_envs, size, visible_frames)
        self.num_envs, self.render_mode = num_envs, render_mode
        self._generators: list[np.random.Generator] = []  # one a game, if they were seeded so
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self.single_observation_space = _screen_space(size)
        self.single_action_space = gymnasium.spaces.Discrete(len(ACTIONS))
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(
        self,
        *,
        seed: int | list[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ):
        mask = (options or {}).get("reset_mask")
        if mask is not None and (
            np.shape(mask) != (self.num_envs,) or np.array(mask).dtype != bool
        ):
            raise ValueError(
                f"reset_mask must be {self.num_envs} booleans, one per game, got {mask}"
            )
        chosen = np.ones(self.num_envs, dtype=bool) if mask is None else np.array(mask)
        if isinstance(seed, list):
            if len(seed) != self.num_envs:
                raise ValueError(
                    f"seed must be a number, or a list of {self.num_envs}, one per game, got a "
                    f"list of {len(seed)}"
                )
            super().reset()
            before = self._generators
            self._generators = [
                before[k] if before and (one is None or not chosen[k]) else np_random(one)[0]
                for k, one in enumerate(seed)
            ]
        else:
            super().reset(seed=seed)
            if seed is not None:
                self._generators = []
        self._start(chosen)
        return self.games.screens(), {}

    def step(self, actions):
        actions, games = np.asarray(actions), self.games
        whole = np.issubdtype(actions.dtype, np.integer) and actions.shape == (self.num_envs,)
        if not whole or not ((actions >= 0) & (actions <= 2)).all():
            raise gymnasium.error.InvalidAction(
                f"step takes {self.num_envs} integers, each 0, 1 or 2, got {actions!r}"
            )
        if self._np_random is None and not self._generators:
            raise gymnasium.error.ResetNeeded("call reset() before the first step()")
        was_over = games.over
        if self.autoreset_mode is AutoresetMode.DISABLED and was_over.any():
            raise gymnasium.error.ResetNeeded(
                "some games are over; call reset(options={'reset_mask': mask}) before step()"
            )
        rewards = games.move(actions)
        if self.autoreset_mode is AutoresetMode.NEXT_STEP and was_over.any():
            self._start(was_over)
        ended = games.over
        info = {"caught": games.caught & ended, "_caught": ended} if ended.any() else {}
        if self.autoreset_mode is AutoresetMode.SAME_STEP and ended.any():
            info = {"final_info": info, "_final_info": ended, **self._final_screens(ended)}
            self._start(ended)
        return games.screens(), rewards, ended, np.zeros(self.num_envs, dtype=bool), info

    def _start(self, which: np.ndarray) -> None:
        """Begin anew the games of a mask ``which``."""
        if not self._generators:
            self.games.start(self.np_random, which)
        for index in np.flatnonzero(which) if self._generators else ():
            self.games.start(self._generators[index], np.arange(self.num_envs) == index)

    def _final_screens(self, ended: np.ndarray) -> dict[str, np.ndarray]:
        final = np.full(self.num_envs, None, dtype=object)
        for index, screen in zip(np.flatnonzero(ended), self.games.screens()[ended], strict=True):
            final[index] = screen
        return {"final_obs": final, "_final_obs": ended}

    def render(self) -> tuple | None:
        if self.render_mode is None:
            return None
        return tuple(_RENDERERS[self.render_mode](self.games, k) for k in range(self.num_envs))
