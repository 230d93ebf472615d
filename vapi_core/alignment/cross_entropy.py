"""The control that the paper lacks: the base model trained further with plain cross-entropy.

The same steps on the same images as VA-π, clean prefixes, no dropout, so that what is left of the difference is the
reward's doing.
"""

from dataclasses import dataclass

from torch import Tensor

from vapi_core.alignment.method import Method, Setting
from vapi_core.data.batches import AlignmentData
from vapi_core.limits import Checked
from vapi_core.models.logits import next_token_loss
from vapi_core.models.policy import Policy
from vapi_core.training.loop import MicroBatch


@dataclass(frozen=True)
class CrossEntropyConfig(Checked):
    """It has no hyper-parameters but those of the optimization."""


class CrossEntropy:
    """Next-token prediction of the reference tokens, for `vapi_core.training.loop.train`."""

    def __init__(self, generator: Policy, data: AlignmentData):
        self.generator, self.data = generator.eval(), data

    def __call__(self, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        tokens, condition = self.data.batch(batch.items)
        ce = next_token_loss(self.generator(condition, tokens[:, :-1]), tokens)
        return ce, {"ce": ce.detach()}


def open_cross_entropy(config: CrossEntropyConfig, setting: Setting) -> CrossEntropy:
    return CrossEntropy(setting.generator, setting.data)


METHOD = Method(CrossEntropyConfig, open_cross_entropy, needs=lambda config: frozenset())
