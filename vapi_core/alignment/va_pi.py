"""VA-π: teacher-forced rollouts rewarded by reconstruction, regularized by noisy next-token prediction (paper, §1).

One forward per image serves its G rollouts, the policy loss and the prior loss. The policy is on-policy and runs
without dropout, so the old log-probabilities are the new ones detached: the ratio is exactly 1 in value, its gradient
is not 0. Departures from the authors' trainer, which repeats each context G times, updates with dropout on (so its
ratio differs from 1) and always runs a frozen base model: the gradient here is that of the same objective with dropout
off, and the base model runs only for the KL regularizer or to log the KL. `credit` other than "image" is ours
(`credit.py`): it changes the advantages and nothing else.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vapi_core import distributed
from vapi_core.alignment.credit import Credit, neighbourhood_sums, token_advantages
from vapi_core.alignment.method import Method, Problems, Setting
from vapi_core.alignment.noise import Kernel, noisy_prefix
from vapi_core.alignment.objective import (
    Clamp,
    ClipEpsilon,
    GroupSize,
    clipped_policy_loss,
    group_advantages,
    group_metrics,
    kl_estimate,
)
from vapi_core.alignment.reward import (
    ReconstructionConfig,
    ReconstructionReward,
    open_perceptual,
    perceptual_network,
)
from vapi_core.data.batches import AlignmentData
from vapi_core.limits import CountOrNone, Ratio, Weight
from vapi_core.memory import free_bytes
from vapi_core.models.logits import (
    CHUNK_ELEMENTS,
    final_log_probabilities,
    mean_entropy,
    row_chunks,
    token_log_probabilities,
)
from vapi_core.models.policy import Condition, Policy
from vapi_core.randomness import stream
from vapi_core.sampling.sampler import invert_cdf
from vapi_core.training.loop import MicroBatch


@dataclass(frozen=True, kw_only=True)
class VaPiConfig(ReconstructionConfig):
    """Hyper-parameters of the method; the defaults are the paper's for class-to-image (table 7 and launch scripts)."""

    group_size: GroupSize = 8  # G, rollouts of an image
    noise_ratio: Ratio = 0.0  # ξ, share of prefix tokens replaced
    noise_kernel: Kernel = "uniform"
    regularizer: Literal["ce", "kl", "none"] = "ce"
    regularizer_weight: Weight = 0.1  # β
    clip_epsilon: ClipEpsilon = 0.2  # ε
    advantage_clamp: Clamp = 5.0
    credit: Credit = "image"  # what of the reward is a token's advantage
    log_kl_every: CountOrNone = (
        0  # steps between logged KLs to the base model; 0: never, and no base model is held for it
    )

    @property
    def needs_base(self) -> bool:
        """Whether the frozen base model is held beside the policy."""
        return self.regularizer == "kl" or self.log_kl_every > 0


class VaPi:
    """The objective of VA-π, for `vapi_core.training.loop.train`."""

    def __init__(
        self,
        generator: Policy,
        reward: ReconstructionReward,
        data: AlignmentData,
        config: VaPiConfig,
        seed: int,
        base: Policy | None = None,
    ):
        assert base is not None or not config.needs_base
        self.generator, self.reward, self.data = generator.eval(), reward, data
        self.config, self.seed, self.base = config, seed, base

    def __call__(self, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        config = self.config
        tokens, condition = self.data.batch(batch.items)  # [B, T]
        codebook_size, noise = self.generator.config.codebook_size, (config.noise_ratio, config.noise_kernel)
        prefix = noisy_prefix(tokens, *noise, codebook_size, self.seed, batch)  # [B, T-1]
        logits = self.generator(condition, prefix)  # [B, T, V]
        rollouts = self._roll_out(logits.detach(), batch)  # [B, G, T]
        entropy = mean_entropy(logits.detach())
        rewards, terms, advantages = self._judge(rollouts, batch)

        # the reference tokens ride along as one more sequence, so that one pass over the logits gives all that we need
        log_p = final_log_probabilities(logits, torch.cat([rollouts, tokens[:, None]], 1))  # [B, G + 1, T]
        log_p, ce = log_p[:, :-1], -log_p[:, -1].mean()
        ratio = (log_p - log_p.detach()).exp()
        loss = clipped_policy_loss(ratio, advantages, config.clip_epsilon).mean()
        metrics = {
            **group_metrics(rewards, terms, advantages),
            "ratio": ratio.detach().mean(),
            "clip_fraction": ((ratio.detach() - 1).abs() > config.clip_epsilon).float().mean(),
            "ce": ce.detach(),
            "entropy": entropy,
        }
        if config.regularizer == "ce":
            loss = loss + config.regularizer_weight * ce
        if config.regularizer == "kl" or (config.log_kl_every and batch.step % config.log_kl_every == 0):
            assert self.base is not None
            kl = kl_estimate(log_p, self._base_log_probabilities(self.base, condition, prefix, rollouts)).mean()
            metrics["kl"] = kl.detach()
            if config.regularizer == "kl":
                loss = loss + config.regularizer_weight * kl
        return loss, metrics

    def _roll_out(self, logits: Tensor, batch: MicroBatch) -> Tensor:
        """G sequences [B, G, T] from logits [B, T, V]: temperature 1, no top-k, no top-p, no guidance."""
        shape = (logits.shape[1], self.config.group_size)
        rows = [stream(self.seed, "rollout", batch.step, p).random(shape, dtype=np.float32) for p in batch.positions]
        uniforms = torch.from_numpy(np.concatenate(rows)).to(logits.device)  # [B * T, G]
        flat = logits.flatten(0, 1)
        tokens = [invert_cdf(flat[chunk].softmax(-1), uniforms[chunk]) for chunk in row_chunks(flat)]
        drawn = torch.cat(tokens).clamp(max=logits.shape[-1] - 1)  # logits that are not finite show in the loss
        return drawn.unflatten(0, logits.shape[:2]).transpose(1, 2)

    def _judge(self, rollouts: Tensor, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Rewards [B, G] of rollouts [B, G, T], the terms, and advantages: [B, G], with credit per token [B, G, T]."""
        images, config = self.data.reference_images(batch.items), self.config
        if config.credit == "image":
            rewards, terms = self.reward(rollouts, images, batch.items)
            return rewards, terms, group_advantages(rewards, config.advantage_clamp)
        credited, terms = self.reward.per_token(rollouts, images, batch.items)  # [B, G, T]
        rewards = credited.mean(-1)
        if config.credit == "token-3x3":
            credited = neighbourhood_sums(credited, self.reward.grid(images))
        return rewards, terms, token_advantages(credited, config.advantage_clamp)

    @torch.no_grad()
    def _base_log_probabilities(self, base: Policy, condition: Condition, prefix: Tensor, rollouts: Tensor) -> Tensor:
        """Log-probabilities [B, G, T] under the base model; it holds the logits of few images beside the policy's."""
        images = max(1, CHUNK_ELEMENTS // (rollouts.shape[2] * base.config.codebook_size))
        parts = [slice(start, start + images) for start in range(0, len(rollouts), images)]
        return torch.cat([token_log_probabilities(base(condition[p], prefix[p]), rollouts[p]) for p in parts])


def open_va_pi(config: VaPiConfig, setting: Setting) -> VaPi:
    """The objective with its reward. Where images come again, features of theirs are kept as far as memory allows."""
    optimization, data = setting.optimization, setting.data
    comes_again = optimization.seconds is not None or optimization.steps * optimization.batch_size > len(data)
    sharing_memory = distributed.world_size() if setting.device.type == "cpu" else 1
    kept = free_bytes(setting.device) // (4 * sharing_memory) if comes_again else 0
    perceptual = open_perceptual(config, setting)
    s = setting
    reward = ReconstructionReward(s.tokenizer, config.reward, perceptual, s.dtype, kept, part_bytes=s.part_bytes)
    base = setting.networks.base() if config.needs_base else None
    return VaPi(setting.generator, reward, data, config, setting.seed, base)


def problems(config: VaPiConfig) -> Problems:
    """What cannot work.

    Without any term of the reward there must be a prior to learn from: the KL of the base to itself has no gradient.
    Credit per token needs to know where a term's error lies.
    """
    if not config.reward.terms and not (config.regularizer == "ce" and config.regularizer_weight > 0):
        yield "reward", "without any term there must be a prior to learn from: regularizer ce and a weight above 0."
    for name, maps in config.reward.maps.items():
        if config.credit != "image" and maps is None:
            yield f"reward.{name}", f"this term has no error maps, which credit {config.credit} needs; use image."


METHOD = Method(VaPiConfig, open_va_pi, perceptual_network, problems=problems)
