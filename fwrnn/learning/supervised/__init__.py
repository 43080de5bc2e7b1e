"""Learning from examples and answers, all of a sequence for one class."""

from fwrnn.errors import UserError
from fwrnn.learning.kinds import Outcome, Pictures, Question
from fwrnn.learning.supervised.pictures import of_results, while_learning
from fwrnn.learning.supervised.scoring import predict, score


class Supervised:
    """See ``fwrnn.learning.kinds.Kind``."""

    score, lower_is_better = "error", True
    drawing = staticmethod(while_learning)

    def network(self, model, spec):
        return model.classifier(spec)

    def question(self, trainer) -> Question:
        return Question("test")

    def test(self, task, model, device, question: Question, recorded: dict) -> Outcome:
        if question.games is not None:
            raise UserError("--games is for games, and this task has examples")
        file = question.file
        groups = [task.split(question.split)] if file is None else read_examples(task, file)
        groups = [group.to(device) for group in groups]
        logits = [predict(model, group) for group in groups]
        result = score(*zip(logits, (group.targets for group in groups), strict=True))
        return Outcome(
            {
                "error": result.error,
                "loss": result.loss,
                "wrong": result.wrong,
                "examples": result.count,
            },
            f"error {100 * result.error:.2f} % ({result.wrong:,} of {result.count:,}), "
            f"loss {result.loss:.4f}",
            lambda: Pictures(of_results(task, groups[0].to("cpu"), logits[0].cpu()), {}),
        )

    def curve_metrics(self, trainer, curve: list[dict]) -> dict:
        return {}


def read_examples(task, path: str) -> list:
    """The examples of a file, in the task's own format."""
    if not hasattr(task, "read_file"):
        raise UserError(
            "--data is for tasks on text; for images give the folder of a data set by --data-dir"
        )
    try:
        return task.read_file(path)
    except ValueError as error:
        raise UserError(error) from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
