"""Advantage actor-critic on tasks that are played: the loss, and the synchronous trainer.

Section 4.4 of the paper trains by A3C (Mnih et al., arXiv:1602.01783); its loss is here, for both
forms. What the paper leaves open and we chose: see ``conf/shared/actor_critic.yaml``.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fwrnn.interfaces import GameTask
from fwrnn.learning.adam import Adam
from fwrnn.learning.games.play import Episodes, evaluate_play, play
from fwrnn.learning.loop import Trainer
from fwrnn.learning.run_folder import RunFolder
from fwrnn.learning.schema import ActorCriticConfig


class Losses(NamedTuple):
    """The parts of the loss, means over the moves; ``entropy`` is that of the policy, in nats."""

    loss: Tensor
    policy_loss: Tensor
    value_loss: Tensor
    entropy: Tensor


def returns(
    rewards: Tensor, values: Tensor, alive: Tensor, discount: float, n_steps: int | None
) -> Tensor:
    """What the values should have been, (T, N): rewards to come, later ones discounted.

    R(t) = Σ_{i<n} γ^i r(t+i) + γ^n V(t+n), where nothing follows a game's end; without ``n_steps``
    it is the sum over the rest of the game.
    """
    length = len(rewards)
    steps = length if n_steps is None else min(n_steps, length)
    rewards, values = rewards * alive, values * alive
    ahead = torch.cat([values[steps:], values.new_zeros(steps, *values.shape[1:])])
    padded = torch.cat([rewards, rewards.new_zeros(rewards.shape)])
    for later in reversed(range(steps)):
        ahead = padded[later : later + length] + discount * ahead
    return ahead


def actor_critic_loss(
    model: nn.Module, episodes: Episodes, config: ActorCriticConfig, entropy_cost: float
) -> Losses:
    """The loss of the moves that were made: whole games go through the model at once.

    -log π(a) (R - V) + value_cost · (R - V)² - entropy_cost · H(π), the advantage R - V of the
    first term taken as given.
    """
    logits, values, _ = model(episodes.screens)
    log_policy = logits.log_softmax(-1)
    taken = log_policy.gather(-1, episodes.actions.unsqueeze(-1)).squeeze(-1)
    target = returns(
        episodes.rewards, values.detach(), episodes.alive, config.discount, config.n_steps
    )
    error = target - values
    weights = episodes.alive / episodes.alive.sum()

    def mean(per_move: Tensor) -> Tensor:
        return (per_move * weights).sum()

    policy_loss = -mean(taken * error.detach())
    value_loss = mean(error.square())
    entropy = -mean((log_policy.exp() * log_policy).sum(-1))
    loss = policy_loss + config.value_cost * value_loss - entropy_cost * entropy
    return Losses(loss, policy_loss.detach(), value_loss.detach(), entropy.detach())


def entropy_cost(update: int, config: ActorCriticConfig) -> float:
    """Its weight at an update, counted from 0: falling to 0 over ``entropy_until`` of the run."""
    if config.entropy_until is None:
        return config.entropy_cost
    end = config.entropy_until * config.max_updates
    return config.entropy_cost * max(0.0, 1 - update / end) if end else 0.0


def measured(losses: Losses, episodes: Episodes) -> dict[str, Tensor]:
    """What the log has of an update."""
    scores = episodes.scores
    parts = {name: part.detach() for name, part in losses._asdict().items()}
    return {**parts, "reward": scores.mean(), "won": (scores > 0).float().mean()}


class PlayingTrainer(Trainer):
    """What both forms of the actor-critic share: greedy validation, and counting frames."""

    watched = "reward"

    def __init__(
        self,
        model: nn.Module,
        task: GameTask,
        config: ActorCriticConfig,
        device: torch.device,
        folder: RunFolder,
    ):
        optimizer = Adam(model.parameters(), config.learning_rate)
        super().__init__(model, optimizer, config, device, folder)
        self.task = task
        self.frames = self._frames_logged = 0

    def validate(self) -> dict[str, float]:
        result = evaluate_play(
            self.validated_model, self.task, "val", self.config.val_games, self.device
        )
        return {"val_reward": result.reward, "val_won": result.won, "frames": self.frames}

    def better(self, now: dict[str, float], best: dict[str, float]) -> bool:
        """Of equal rewards the later one."""
        return now["val_reward"] >= best["val_reward"]

    @property
    def stands_since(self) -> int:
        """A later one that is only as good is kept, and no progress."""
        best, curve = self.progress.best["val_reward"], self.progress.curve
        return next((x["updates"] for x in curve if x["val_reward"] >= best), 0)

    def solved(self, best: dict[str, float]) -> bool:
        wanted = self.config.solved_reward
        return wanted is not None and best["val_reward"] >= wanted

    def shown(self, measured: dict[str, float]) -> dict[str, str]:
        return {"val_reward": f"{measured['val_reward']:.3f}"}

    def rates(self, updates: int, seconds: float) -> dict[str, float]:
        frames, self._frames_logged = self.frames - self._frames_logged, self.frames
        return {**super().rates(updates, seconds), "frames_per_second": frames / seconds}

    def content(self) -> dict:
        return {**super().content(), "frames": self.frames}

    def load(self, content: dict) -> None:
        super().load(content)
        self.frames = self._frames_logged = content["frames"]


class A2CTrainer(PlayingTrainer):
    """Many games side by side, an update from all of them.

    Args:
        model: an ``ActorCritic``, already on ``device``.
        task: gives the games.
        config: see ``conf/trainer/a2c.yaml``.
        seed: the same seed makes the same run; it is the task's that decides the games.
        device: where the model is.
        folder: takes the checkpoints and the curve.
    """

    def __init__(self, model, task, config, seed, device, folder):
        super().__init__(model, task, config, device, folder)
        self.games = task.games(config.games)

    def update(self) -> dict[str, Tensor]:
        """Play, then one step of Adam."""
        update = self.progress.update
        self.set_learning_rate()
        with self.unless_stopped():
            episodes = play(self.model, self.games, self.task.seed_of("train", update), self.device)
            self.optimizer.zero_grad()
            cost = entropy_cost(update, self.config)
            losses = actor_critic_loss(self.model, episodes, self.config, cost)
            losses.loss.backward()
        self.frames += episodes.frames
        if self.config.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.optimizer.step()
        return measured(losses, episodes)
