"""Learning from examples and answers, all of a sequence for one class."""

import torch
from torch import Tensor

from fwrnn.errors import UserError
from fwrnn.interfaces import Line
from fwrnn.learning.kinds import Outcome, Pictures, Question
from fwrnn.learning.supervised.scoring import predict, score


class Supervised:
    """See ``fwrnn.learning.kinds.Kind``. Pictures are imported, matplotlib with them, to draw."""

    score, lower_is_better, in_place_of_answers = "error", True, ""

    def drawing(self, task, model, device):
        from fwrnn.learning.supervised.pictures import while_learning

        return while_learning(task, model, device)

    def network(self, model, spec):
        return model.classifier(spec)

    def question(self, trainer) -> Question:
        return Question("test")

    def test(self, task, model, device, question: Question, recorded: dict) -> Outcome:
        if question.games is not None:
            raise UserError("--games is for games, and this task has examples")
        if question.file is not None:
            return _test_lines(task, model, device, read_lines(task, question.file))
        examples = task.split(question.split)
        on_device = examples.to(device)
        logits = predict(model, on_device.inputs)
        measured, words = _scored(logits, on_device.targets)

        def draw() -> Pictures:
            from fwrnn.learning.supervised.pictures import of_results

            on_cpu = examples.to("cpu"), logits.cpu()
            return Pictures(of_results(task, question.split, *on_cpu), {})

        return Outcome(measured, words, draw)

    def curve_metrics(self, trainer, curve: list[dict]) -> dict:
        return {}


def read_lines(task, path: str) -> list[Line]:
    """Somebody's own examples, from a file in the task's own format."""
    if not hasattr(task, "read_file"):
        raise UserError(
            "--data is for tasks on text; for images give the folder of a data set by --data-dir, "
            "or ask from Python: fwrnn.load(RUN)(image).label"
        )
    try:
        return task.read_file(path)
    except ValueError as error:
        raise UserError(error) from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def _test_lines(task, model, device, lines: list[Line]) -> Outcome:
    """The score on the lines that have an answer, and what every line is answered with.

    In words it is told of those alone that have none, in the format of the others.
    """
    logits = predict_lines(model, device, lines)
    labels = task.spec.labels
    sure, guesses = (part.tolist() for part in logits.softmax(-1).max(-1))
    answered = [k for k, line in enumerate(lines) if line.target is not None]
    measured, words = {}, ""
    if answered:
        targets = torch.tensor([lines[k].target for k in answered])
        measured, words = _scored(logits[answered], targets)
    measured["predictions"] = [
        {
            "input": line.text,
            "answer": labels[guess],
            "confidence": confidence,
            "expected": None if line.target is None else labels[line.target],
        }
        for line, guess, confidence in zip(lines, guesses, sure, strict=True)
    ]
    asked = [p for p in measured["predictions"] if p["expected"] is None]
    return Outcome(measured, words, lines=[f"{p['input']}\t{p['answer']}" for p in asked])


def predict_lines(model, device, lines: list[Line]) -> Tensor:
    """The logits (N, classes) of all lines, on the CPU; one batch for each shape of inputs."""
    shapes: dict[torch.Size, list[int]] = {}
    for k, line in enumerate(lines):
        shapes.setdefault(line.inputs.shape, []).append(k)
    order = [k for places in shapes.values() for k in places]
    logits = [
        predict(model, torch.stack([lines[k].inputs for k in places]).to(device)).cpu()
        for places in shapes.values()
    ]
    return torch.cat(logits)[torch.tensor(order).argsort()]


def _scored(logits: Tensor, targets: Tensor) -> tuple[dict, str]:
    """What is measured of logits (N, classes) and targets (N), and the words for it."""
    result = score(logits, targets)
    return result._asdict(), (
        f"error {100 * result.error:.2f} % ({result.wrong:,} of {result.examples:,}), "
        f"loss {result.loss:.4f}"
    )
