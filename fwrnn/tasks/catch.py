"""Partially observable Catch as a task: section 4.4 of the paper."""

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from fwrnn.environments.catch import ACTIONS, CatchVectorEnv, Games
from fwrnn.interfaces import Screens, TaskSpec

_SPLITS = {"train": 0, "val": 1, "test": 2}


class Catch:
    """See ``fwrnn.environments.catch`` for the game.

    Args:
        size: N, pixels along the screen's side, and frames in a game; 3 or more.
        visible_frames: M, frames that are shown, 1 to N.
        seed: decides the games.

    Raises:
        ValueError: an argument out of range.
    """

    reward_range = (-1.0, 1.0)

    def __init__(self, size: int, visible_frames: int, seed: int):
        Games(1, size, visible_frames)  # which checks them
        self.size, self.visible_frames, self.seed = size, visible_frames, seed
        self.spec = TaskSpec(Screens(size), ACTIONS)

    def games(self, count: int) -> VectorEnv:
        mode = AutoresetMode.NEXT_STEP
        return CatchVectorEnv(count, self.size, self.visible_frames, "rgb_array", mode)

    def seed_of(self, split: str, index: int = 0) -> int:
        sequence = np.random.SeedSequence([self.seed, _SPLITS[split], index])
        return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))
