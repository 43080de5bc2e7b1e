"""A kind of learning of somebody's own: an answer at every step, here the symbol before."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from fwrnn.interfaces import Examples, Symbols, TaskSpec
from fwrnn.learning.kinds import Outcome, Question
from fwrnn.learning.schema import SupervisedConfig
from fwrnn.learning.supervised.trainer import SupervisedTrainer
from fwrnn.models.encoders import build_encoder
from fwrnn.models.network import Network
from fwrnn.tasks.schema import TaskConfig


class Tagger(Network):
    """(B, T) → logits (B, classes, T), as cross entropy takes them."""

    def __init__(self, config, spec):
        super().__init__()
        self.encoder = build_encoder(spec.inputs, config)
        self.core, self.state_size = config.build(config.encoding_size), config.state_size
        self.head = torch.nn.Linear(config.hidden_size, len(spec.labels))

    def forward(self, inputs):
        return self.head(self.core(self.encoder(inputs))[0]).permute(1, 2, 0)


def measure(model, examples):
    with torch.no_grad():
        logits = model(examples.inputs)
    wrong = (logits.argmax(1) != examples.targets).float().mean().item()
    return F.cross_entropy(logits, examples.targets).item(), wrong


class PerStep:
    score, lower_is_better = "step_error", True

    def network(self, model, spec):
        return Tagger(model, spec)

    def question(self, trainer):
        return Question("test")

    def drawing(self, task, model, device):
        return "steps", lambda model: torch.zeros(4, 4, 3, dtype=torch.uint8).numpy()

    def test(self, task, model, device, question, recorded):
        loss, wrong = measure(model, task.split(question.split))
        return Outcome({"step_error": wrong, "loss": loss}, f"{wrong:.1%} of all steps wrong")

    def curve_metrics(self, trainer, curve):
        return {}


class PerStepTrainer(SupervisedTrainer):
    def validate(self):
        loss, wrong = measure(self.validated_model, self.validation)
        return {"val_loss": loss, "val_step_error": wrong}

    def shown(self, measured):
        return {}


@dataclass(kw_only=True)
class PerStepConfig(SupervisedConfig):
    kind = "per_step"

    def build(self, model, task, seed, device, folder):
        return PerStepTrainer(model, task, self, seed, device, folder)


@dataclass
class EchoConfig(TaskConfig):
    length: int
    kind, shows = "per_step", "symbols"

    def build(self, seed):
        return Echo(self.length, seed)


class Echo:
    resample, held_out = False, True

    def __init__(self, length, seed):
        self.length, self.seed = length, seed
        self.spec = TaskSpec(Symbols(5), tuple("abcde"))

    def split(self, name, epoch=0):
        draw = torch.Generator().manual_seed(self.seed + len(name))
        inputs = torch.randint(0, 5, (256, self.length), generator=draw)
        return Examples(inputs, inputs.roll(1, 1))
