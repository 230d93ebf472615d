"""The control that the paper lacks: the base model trained further with next-token prediction alone.

The same steps on the same images as VA-π, no dropout, and the same noisy prefixes of the same seed, so that what is
left of the difference is the reward's doing. With a noise ratio of 0 it is plain cross-entropy.
"""

from dataclasses import dataclass

from torch import Tensor

from vapi_core.alignment.method import Method, Setting
from vapi_core.alignment.noise import Kernel, noisy_prefix
from vapi_core.data.batches import AlignmentData
from vapi_core.limits import Checked, Ratio
from vapi_core.models.logits import next_token_loss
from vapi_core.models.policy import Policy
from vapi_core.training.loop import MicroBatch


@dataclass(frozen=True)
class CrossEntropyConfig(Checked):
    """The noise is VA-π's (`vapi_core.alignment.noise`)."""

    noise_ratio: Ratio = 0.0  # ξ, share of prefix tokens replaced
    noise_kernel: Kernel = "uniform"


class CrossEntropy:
    """Next-token prediction of the reference tokens, for `vapi_core.training.loop.train`."""

    def __init__(self, generator: Policy, data: AlignmentData, config: CrossEntropyConfig, seed: int):
        self.generator, self.data, self.config, self.seed = generator.eval(), data, config, seed

    def __call__(self, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        tokens, condition = self.data.batch(batch.items)
        codebook_size, noise = self.generator.config.codebook_size, (self.config.noise_ratio, self.config.noise_kernel)
        prefix = noisy_prefix(tokens, *noise, codebook_size, self.seed, batch)
        ce = next_token_loss(self.generator(condition, prefix), tokens)
        return ce, {"ce": ce.detach()}


def open_cross_entropy(config: CrossEntropyConfig, setting: Setting) -> CrossEntropy:
    return CrossEntropy(setting.generator, setting.data, config, setting.seed)


METHOD = Method(CrossEntropyConfig, open_cross_entropy, needs=lambda config: frozenset())
