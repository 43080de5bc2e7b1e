"""A trained network to ask from Python: ``fwrnn.load(RUN)``."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from fwrnn.config import Config
from fwrnn.interfaces import Images, Line, Task
from fwrnn.learning.assembly import load_run, own_threads
from fwrnn.learning.kinds import kind_of
from fwrnn.learning.supervised import predict_lines
from fwrnn.learning.supervised.scoring import predict
from fwrnn.models.network import Network, has_memory


@dataclass(frozen=True)
class Answer:
    """The class that a network names, how sure it is (0 to 1), and so of every class."""

    label: str
    confidence: float
    probabilities: dict[str, float]


def sureness(confidence: float) -> str:
    """A confidence, 0 to 1, in words that do not round it to certainty."""
    return "more than 99.99 % sure" if confidence > 0.9999 else f"{100 * confidence:.2f} % sure"


class Trained:
    """A trained network, and what turns an input into its answer.

    ``model`` is the ``torch.nn.Module``, in eval mode on ``device``, ``config`` the configuration
    that it was trained with, and ``task`` what it was trained on. Called with one input it gives an
    ``Answer``, with several a list of them: a string or a list of strings where the task is one on
    text; an image (S, S) or images (N, S, S), bytes from 0 black to 255 white in a NumPy array or a
    tensor, where it is one on images.

    Raises:
        ValueError: an input that the task does not have.
        TypeError: something else than what the network takes, or a network that plays games, which
            has moves in the place of answers.
    """

    def __init__(self, model: Network, config: Config, task: Task, device: torch.device):
        self.model, self.config, self.task, self.device = model.eval(), config, task, device

    def __repr__(self) -> str:
        return f"<{self.config.model.name} trained on {self.config.task.name}>"

    @overload
    def __call__(self, inputs: str) -> Answer: ...
    @overload
    def __call__(self, inputs: Sequence[str]) -> list[Answer]: ...
    @overload
    def __call__(self, inputs: np.ndarray | Tensor) -> Answer | list[Answer]: ...

    def __call__(self, inputs: Any) -> Answer | list[Answer]:
        instead = getattr(kind_of(self.config.task), "in_place_of_answers", "use trained.model")
        if instead:
            raise TypeError(f"task {self.config.task.name} has no classes: {instead}")
        if isinstance(self.task.spec.inputs, Images):
            images = self._images(inputs)
            batch = images.reshape(-1, *images.shape[-2:]).to(self.device)
            answers = self._answers(predict(self.model, batch))
            return answers[0] if images.dim() == 2 else answers
        if isinstance(inputs, str):
            return self._answer_texts([inputs])[0]
        texts = list(inputs)
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("this network reads text; give a string, or a list of strings")
        return self._answer_texts(texts)

    def attention(self, text: str) -> Tensor | None:
        """How strongly each character attends to each earlier one, (T, T), see
        ``FastWeightsRNN.attention``; None for a network without a fast memory.
        """
        if not has_memory(self.model):
            return None
        symbols = self.encode(text).unsqueeze(0).to(self.device)
        with torch.inference_mode():
            return self.model.core.attention(self.model.encoder(symbols))[0].float().cpu()

    def _images(self, images: Any) -> Tensor:
        """The images as a tensor, if they are what the network was trained on."""
        if isinstance(images, np.ndarray):
            images = torch.from_numpy(np.ascontiguousarray(images))
        if not isinstance(images, Tensor) or images.dtype != torch.uint8:
            got = getattr(images, "dtype", type(images).__name__)
            raise TypeError(f"this network looks at bytes, 0 black to 255 white, got {got}")
        spec = self.task.spec.inputs
        assert isinstance(spec, Images)
        side = spec.size
        if images.dim() not in (2, 3) or images.shape[-2:] != (side, side):
            raise ValueError(
                f"this network looks at images ({side}, {side}) or (N, {side}, {side}), got "
                f"{tuple(images.shape)}; crop or scale them"
            )
        return images

    def _answer_texts(self, texts: list[str]) -> list[Answer]:
        """The answers, in order."""
        lines = [Line(text, self.encode(text), None) for text in texts]
        return self._answers(predict_lines(self.model, self.device, lines)) if lines else []

    def encode(self, text: str) -> Tensor:
        """The text as the task's inputs have it; raises ValueError where it is malformed."""
        encode = getattr(self.task, "encode", None)
        if encode is None:
            raise TypeError(f"task {self.config.task.name} does not read text; use trained.model")
        return encode(text)

    def _answers(self, logits: Tensor) -> list[Answer]:
        labels, rows = self.task.spec.labels, logits.double().softmax(-1).tolist()
        return [_answer(dict(zip(labels, row, strict=True))) for row in rows]


def _answer(probabilities: dict[str, float]) -> Answer:
    label = max(probabilities, key=probabilities.__getitem__)
    return Answer(label, probabilities[label], probabilities)


def load(
    run: str | Path, device: str = "cpu", data_dir: str | None = None, backend: str | None = None
) -> Trained:
    """A trained network: ``fwrnn.load("outputs/runs/…")("c9k8j3f1??c").label``.

    Args:
        run: the folder of a run, or the name of a network that ships, such as "retrieval".
        device: where it computes: "cpu", "cuda", …; "auto" is CUDA where there is one that works.
        data_dir: where the data of its task lie here, which name its classes.
        backend: the form that a fast-weights layer is computed in, such as "attention", the first
            to answer as it is not compiled; None: as the run was configured.

    Raises:
        UserError: no such run, a broken one, data that are missing, or no such device.
    """
    coarse = False
    with suppress(RuntimeError):  # so PyTorch answers who has set what it has in its place
        coarse = torch.backends.cudnn.allow_tf32
    started = torch.cuda.is_initialized()
    others = range(torch.cuda.device_count()) if started else ()
    try:
        with own_threads(), torch.random.fork_rng(others):  # building a network draws first weights
            (config, _, task, model, where), _ = load_run(run, device, data_dir)
    finally:
        if coarse:
            torch.backends.cudnn.allow_tf32 = True
        if not started:  # GPUs would begin with the run's seed
            torch.cuda.manual_seed_all(torch.initial_seed())
    core: Any = getattr(model, "core", None)
    if backend is not None and hasattr(core, "backend"):
        core.backend = backend
    return Trained(model, config, task, where)
