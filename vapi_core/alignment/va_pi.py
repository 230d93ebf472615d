"""VA-π: teacher-forced rollouts rewarded by reconstruction, regularized by noisy next-token prediction (paper, §1).

One forward per image serves its G rollouts, the policy loss and the prior loss. The policy is on-policy and runs
without dropout, so the old log-probabilities are the new ones detached: the ratio is exactly 1 in value, its gradient
is not 0. Departures from the authors' trainer, which repeats each context G times, updates with dropout on (so its
ratio differs from 1) and always runs a frozen base model: the gradient here is that of the same objective with dropout
off, and the base model runs only for the KL regularizer or to log the KL.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vapi_core.alignment.data import AlignmentData
from vapi_core.alignment.noise import Kernel, corrupt_prefix, draw_noise
from vapi_core.alignment.objective import (
    CHUNK_ELEMENTS,
    clipped_policy_loss,
    final_log_probabilities,
    group_advantages,
    kl_estimate,
    mean_entropy,
    row_chunks,
    token_log_probabilities,
)
from vapi_core.alignment.reward import ReconstructionReward, RewardWeights
from vapi_core.models.policy import Condition, Policy
from vapi_core.randomness import stream
from vapi_core.sampling import invert_cdf
from vapi_core.training import Slots


@dataclass(frozen=True)
class VaPiConfig:
    """Hyper-parameters of the method; the defaults are the paper's for class-to-image (table 7 and launch scripts)."""

    group_size: int = 8  # G, rollouts of an image
    noise_ratio: float = 0.0  # ξ, share of prefix tokens replaced
    noise_kernel: Kernel = "uniform"
    regularizer: Literal["ce", "kl", "none"] = "ce"
    regularizer_weight: float = 0.1  # β
    clip_epsilon: float = 0.2  # ε
    advantage_clamp: float = 5.0
    reward: RewardWeights = field(default_factory=RewardWeights)
    log_kl_every: int = 0  # steps between logged KLs to the base model; 0: never, and no base model is held for it


class VaPi:
    """The objective of VA-π, for `vapi_core.training.train`."""

    def __init__(
        self,
        generator: Policy,
        reward: ReconstructionReward,
        data: AlignmentData,
        config: VaPiConfig,
        seed: int,
        base: Policy | None = None,
    ):
        assert base is not None or (config.regularizer != "kl" and not config.log_kl_every)
        self.generator, self.reward, self.data = generator.eval(), reward, data
        self.config, self.seed, self.base = config, seed, base

    def __call__(self, slots: Slots) -> tuple[Tensor, dict[str, Tensor]]:
        config = self.config
        tokens, condition = self.data.batch(slots.items)  # [B, T]
        prefix = self._noisy_prefix(tokens, slots)  # [B, T-1]
        logits = self.generator(condition, prefix)  # [B, T, V]
        rollouts = self._roll_out(logits.detach(), slots)  # [B, G, T]
        entropy = mean_entropy(logits.detach())
        rewards, terms = self.reward(rollouts, self.data.reference_images(slots.items), slots.items)  # [B, G]
        advantages = group_advantages(rewards, config.advantage_clamp)

        # the reference tokens ride along as one more sequence, so that one pass over the logits gives all that is needed
        log_p = final_log_probabilities(logits, torch.cat([rollouts, tokens[:, None]], 1))  # [B, G + 1, T]
        log_p, ce = log_p[:, :-1], -log_p[:, -1].mean()
        ratio = (log_p - log_p.detach()).exp()
        loss = clipped_policy_loss(ratio, advantages, config.clip_epsilon).mean()
        metrics = {
            "reward": rewards.mean(),
            **{f"reward_{name}": value.mean() for name, value in terms.items()},
            "reward_spread": rewards.std(1).mean(),
            "advantage_magnitude": advantages.abs().mean(),
            "ratio": ratio.detach().mean(),
            "clip_fraction": ((ratio.detach() - 1).abs() > config.clip_epsilon).float().mean(),
            "ce": ce.detach(),
            "entropy": entropy,
        }
        if config.regularizer == "ce":
            loss = loss + config.regularizer_weight * ce
        if config.regularizer == "kl" or (config.log_kl_every and slots.step % config.log_kl_every == 0):
            assert self.base is not None
            kl = kl_estimate(log_p, self._base_log_probabilities(self.base, condition, prefix, rollouts)).mean()
            metrics["kl"] = kl.detach()
            if config.regularizer == "kl":
                loss = loss + config.regularizer_weight * kl
        return loss, metrics

    def _noisy_prefix(self, tokens: Tensor, slots: Slots) -> Tensor:
        if self.config.noise_ratio == 0:
            return tokens[:, :-1]
        codebook_size, kernel = self.generator.config.codebook_size, self.config.noise_kernel
        prefix = tokens[:, :-1]
        uniforms, replacements = (
            t.to(tokens.device)
            for t in draw_noise(self.seed, slots.step, slots.positions, prefix.shape[1], codebook_size, kernel)
        )
        return corrupt_prefix(prefix, self.config.noise_ratio, uniforms, replacements, codebook_size, kernel)

    def _roll_out(self, logits: Tensor, slots: Slots) -> Tensor:
        """G sequences [B, G, T] from logits [B, T, V]: temperature 1, no top-k, no top-p, no guidance."""
        shape = (logits.shape[1], self.config.group_size)
        rows = [stream(self.seed, "rollout", slots.step, p).random(shape, dtype=np.float32) for p in slots.positions]
        uniforms = torch.from_numpy(np.concatenate(rows)).to(logits.device)  # [B * T, G]
        flat = logits.flatten(0, 1)
        tokens = [invert_cdf(flat[chunk].softmax(-1), uniforms[chunk]) for chunk in row_chunks(flat)]
        drawn = torch.cat(tokens).clamp(max=logits.shape[-1] - 1)  # logits that are not finite show in the loss
        return drawn.unflatten(0, logits.shape[:2]).transpose(1, 2)

    @torch.no_grad()
    def _base_log_probabilities(self, base: Policy, condition: Condition, prefix: Tensor, rollouts: Tensor) -> Tensor:
        """Log-probabilities [B, G, T] under the base model, which holds the logits of few images beside the policy's."""
        images = max(1, CHUNK_ELEMENTS // (rollouts.shape[2] * base.config.codebook_size))
        parts = [slice(start, start + images) for start in range(0, len(rollouts), images)]
        return torch.cat([token_log_probabilities(base(condition[p], prefix[p]), rollouts[p]) for p in parts])
