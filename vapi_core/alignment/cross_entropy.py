"""The control that the paper lacks: the base model trained further with plain cross-entropy.

The same steps on the same images as VA-π, clean prefixes, no dropout, so that what is left of the difference is the
reward's doing.
"""

from dataclasses import dataclass

from torch import Tensor

from vapi_core.alignment.data import AlignmentData
from vapi_core.alignment.method import Method, Setting
from vapi_core.alignment.objective import prior_loss
from vapi_core.limits import Checked
from vapi_core.models.policy import Policy
from vapi_core.training import Slots


@dataclass(frozen=True)
class CrossEntropyConfig(Checked):
    """It has no hyper-parameters but those of the optimization."""


class CrossEntropy:
    """Next-token prediction of the reference tokens, for `vapi_core.training.train`."""

    def __init__(self, generator: Policy, data: AlignmentData):
        self.generator, self.data = generator.eval(), data

    def __call__(self, slots: Slots) -> tuple[Tensor, dict[str, Tensor]]:
        tokens, condition = self.data.batch(slots.items)
        ce = prior_loss(self.generator(condition, tokens[:, :-1]), tokens)
        return ce, {"ce": ce.detach()}


def open_cross_entropy(config: CrossEntropyConfig, setting: Setting) -> CrossEntropy:
    return CrossEntropy(setting.generator, setting.data)


METHOD = Method(CrossEntropyConfig, open_cross_entropy, needs=lambda config: frozenset())
