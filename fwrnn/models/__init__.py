"""Networks: an encoder, a recurrent core and a head; ``build_model`` makes them all.

A model = one function in ``cores``, one YAML in ``conf/model``, one line in ``CORES``.
"""

from fwrnn.config import ConvNetConfig, RecurrentConfig
from fwrnn.interfaces import Screens, TaskSpec
from fwrnn.models.actor_critic import ActorCritic
from fwrnn.models.classifiers import Classifier, GlimpseConvNet, SequenceClassifier
from fwrnn.models.network import Network

__all__ = ["ActorCritic", "Classifier", "Network", "build_model"]


def build_model(config: RecurrentConfig | ConvNetConfig, spec: TaskSpec) -> Network:
    """The network that a configuration describes, for a task's inputs and classes or actions.

    Raises:
        ValueError: a setting that it does not take, or a task that it cannot be used for.
    """
    if isinstance(spec.inputs, Screens):
        return ActorCritic(spec, config)
    if isinstance(config, ConvNetConfig):
        return GlimpseConvNet(spec, config)
    return SequenceClassifier(spec, config)
