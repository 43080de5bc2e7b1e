"""A network = encoder + recurrent core + head; the same encoder and head for every core."""

from fwrnn.models.cores import CORES, state_size
from fwrnn.models.sequence_classifier import SequenceClassifier, build_model

__all__ = ["CORES", "SequenceClassifier", "build_model", "state_size"]
