"""The settings of every task: the arguments of its class. Does not import torch."""

from dataclasses import dataclass
from pkgutil import resolve_name
from typing import TYPE_CHECKING, ClassVar

from fwrnn.config import added_settings
from fwrnn.rule import one_of

if TYPE_CHECKING:
    from fwrnn.interfaces import Task

DATASETS = ("mnist", "digits")
LAYOUTS = ("synthetic", "multi_pie", "folders")


@dataclass
class TaskConfig:
    """What every task has.

    ``kind`` names how it is learned, see ``fwrnn.learning.kinds``; ``shows`` is what a model sees
    of it: "symbols", "images" or "screens"; ``makes`` is its class, as "module:class".
    """

    name: str

    kind: ClassVar[str]
    shows: ClassVar[str]
    makes: ClassVar[str]

    @property
    def variant(self) -> str | None:
        """Which of its data sets or games it is: a stand-in must not pass for the real one."""
        return None

    def build(self, seed: int) -> "Task":
        """The task. Raises ValueError for a setting out of range."""
        return resolve_name(self.makes)(**added_settings(self, TaskConfig), seed=seed)


@dataclass
class AssocRetrievalConfig(TaskConfig):
    pairs: int
    resample: bool
    train_size: int
    val_size: int
    test_size: int

    kind, shows = "supervised", "symbols"
    makes = "fwrnn.tasks.assoc_retrieval:AssocRetrieval"


@dataclass
class MnistGlimpsesConfig(TaskConfig):
    dataset: str
    data_dir: str | None
    train_on_all: bool
    shift: float
    rotation: float

    kind, shows = "supervised", "images"
    makes = "fwrnn.tasks.mnist_glimpses:MnistGlimpses"

    def __post_init__(self):
        one_of("dataset", self.dataset, DATASETS)

    @property
    def variant(self) -> str:
        return self.dataset


@dataclass
class FacialExpressionConfig(TaskConfig):
    layout: str
    data_dir: str | None
    cache_dir: str | None
    cameras: list[str]
    val_identities: int
    test_identities: int
    identities: int
    images_per_identity: int
    max_unreadable: float
    shift: float
    rotation: float

    kind, shows = "supervised", "images"
    makes = "fwrnn.tasks.facial_expression:FacialExpression"

    def __post_init__(self):
        one_of("layout", self.layout, LAYOUTS)

    @property
    def variant(self) -> str:
        return self.layout


@dataclass
class CatchConfig(TaskConfig):
    size: int
    visible_frames: int

    kind, shows = "games", "screens"
    makes = "fwrnn.tasks.catch:Catch"

    @property
    def variant(self) -> str:
        return f"N={self.size}, M={self.visible_frames}"
