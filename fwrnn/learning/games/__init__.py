"""Learning by playing: many games side by side, and what the moves brought."""

from fwrnn.errors import UserError
from fwrnn.learning.games.pictures import animation, record, strip
from fwrnn.learning.games.play import evaluate_play
from fwrnn.learning.kinds import Outcome, Pictures, Question

GOAL = 0.9  # the reward of ``frames_to_0.9``
MOST = 1_000_000  # games side by side
USUAL = 1000  # games of a test, of runs that did not record how many


class Games:
    """See ``fwrnn.learning.kinds.Kind``."""

    score, lower_is_better = "reward", False
    in_place_of_answers = (
        "this network plays. trained.model(screens, state), with screens (T, N, S, S), gives "
        "logits of its moves and the state to go on from; fwrnn evaluate has it play"
    )

    def network(self, model, spec):
        return model.player(spec)

    def question(self, trainer) -> Question:
        return Question("test", games=trainer.test_games)

    def drawing(self, task, model, device):
        return "game", lambda model: strip(record(model, task, device, games=1))

    def test(self, task, model, device, question: Question, recorded: dict) -> Outcome:
        if question.file is not None:
            raise UserError("--data is for examples, and this task is played")
        name = f"{question.split}_games"
        count = question.games or recorded.get(name) or USUAL
        if not isinstance(count, int) or not 0 < count <= MOST:
            raise UserError(f"{name} must be a whole number from 1 to {MOST:,}, got {count}")
        result = evaluate_play(model, task, question.split, count, device)

        def draw() -> Pictures:
            played = record(model, task, device)
            return Pictures({"game": strip(played)}, {"games": animation(played)})

        return Outcome(
            result._asdict(),
            f"reward {result.reward:.3f} (95 %: {result.reward_low:.3f} to "
            f"{result.reward_high:.3f}), {100 * result.won:.1f} % of {result.games:,} games won",
            draw,
        )

    def curve_metrics(self, trainer, curve: list[dict]) -> dict:
        frames, seconds = curve[-1]["frames"], curve[-1]["seconds"]
        return {
            "val_games": trainer.val_games,
            "frames": frames,
            "frames_per_second": round(frames / max(seconds, 1e-9), 1),
            f"frames_to_{GOAL}": frames_to(curve, GOAL),
        }


def frames_to(curve: list[dict], goal: float) -> int | None:
    """Frames until the validation games' mean reward stays above ``goal``; None if it does not."""
    first = None
    for row in curve:
        if row["val_reward"] <= goal:
            first = None
        elif first is None:
            first = row["frames"]
    return first
