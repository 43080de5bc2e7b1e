"""Playing: a policy in many games at once, and how well it does."""

from typing import NamedTuple

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor, nn

from fwrnn.interfaces import GameTask
from fwrnn.intervals import wilson
from fwrnn.models.network import evaluating


class Episodes(NamedTuple):
    """N games from their first screen to the end of the longest, T moves.

    ``screens`` (T, N, S, S) bytes, ``actions`` (T, N) int64 and ``rewards`` (T, N) of each move;
    ``alive`` (T, N) is False where a game was over before the move, whose entries do not count.
    """

    screens: Tensor
    actions: Tensor
    rewards: Tensor
    alive: Tensor

    @property
    def scores(self) -> Tensor:
        """The sum of each game's rewards. (N)"""
        return (self.rewards * self.alive).sum(0)

    @property
    def frames(self) -> int:
        """Screens of all games, the last ones, which ask for no move, among them."""
        return int(self.alive.sum()) + self.alive.shape[1]


def play(
    model: nn.Module, games: VectorEnv, seed: int, device: torch.device, greedy: bool = False
) -> Episodes:
    """Play every game once, from the start that ``seed`` gives, to its end.

    Moves are drawn from the model's policy by torch's random numbers, or are its most likely ones.
    Of logits that are not numbers none is: such a game's reward is no number either.
    """
    screen, _ = games.reset(seed=seed)
    alive, state, steps = np.ones(games.num_envs, dtype=bool), None, []
    with torch.inference_mode():
        while alive.any():
            seen = torch.from_numpy(screen).to(device)
            logits, _, state = model(seen.unsqueeze(0), state)
            logits = logits[0]
            actions = logits.argmax(-1) if greedy else draw(logits)
            screen, reward, ended, cut_short, _ = games.step(actions.cpu().numpy())
            earned, living = torch.from_numpy(reward).float(), torch.from_numpy(alive)
            if greedy:  # of drawn moves the loss tells
                earned = earned.where(~(logits.isnan().any(-1).cpu() & living), torch.nan)
            steps.append((seen, actions, earned, living))
            alive = alive & ~(ended | cut_short)
    screens, actions, rewards, living = (torch.stack(part) for part in zip(*steps, strict=True))
    return Episodes(screens, actions, rewards.to(device), living.to(device))


def draw(logits: Tensor) -> Tensor:
    """One action per row of ``logits`` (N, actions), by its probability. → (N).

    Of logits that are not numbers any action: the loss will tell that training diverged.
    """
    return torch.multinomial(logits.softmax(-1).nan_to_num(1.0), 1).squeeze(-1)


class Result(NamedTuple):
    """How a policy did in a number of games, by the names and in the order of what is recorded.

    ``reward`` is the mean score, ``reward_low`` and ``reward_high`` its 95 % confidence interval,
    ``won`` the share of the games with a score above 0.
    """

    reward: float
    reward_low: float
    reward_high: float
    won: float
    games: int


def evaluate_play(
    model: nn.Module, task: GameTask, split: str, count: int, device: torch.device
) -> Result:
    """The greedy policy in ``count`` games of a split: "val", "test" or "train"; in eval mode."""
    with evaluating(model):
        episodes = play(model, task.games(count), task.seed_of(split), device, greedy=True)
    scores = episodes.scores.double()
    reward = scores.mean().item()
    low, high = wilson(reward, count, *task.reward_range)
    return Result(reward, low, high, (scores > 0).double().mean().item(), count)
