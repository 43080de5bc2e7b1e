"""A network = encoder + recurrent core + head; the same encoder and head for every core."""

from fwrnn.models.classifiers import Classifier, SequenceClassifier, build_model
from fwrnn.models.cores import CORES, state_size

__all__ = ["CORES", "Classifier", "SequenceClassifier", "build_model", "state_size"]
