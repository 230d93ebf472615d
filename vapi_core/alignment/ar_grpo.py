"""AR-GRPO, a rival of tables 2 and 3: free-running rollouts, rewarded by external models, held near the base by a KL.

Yuan et al. 2025, arXiv:2508.06924. Of every image only its condition, a class or a caption, is used: G sequences are drawn token by token with
guidance, decoded, rewarded, and compared within their group. Everything after that is VA-π's own objective code.
The policy is the guided distribution itself: its log-probabilities come from guided logits, the unconditional half with
its gradient, so that the update is on-policy and the ratio exactly 1 in value. The KL to the base is between guided
distributions too. Rewards are those of `external_reward.py`; the paper's MANIQA and VLM judges are not among them.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vapi_core.alignment.data import AlignmentData
from vapi_core.alignment.external_reward import ExternalReward
from vapi_core.alignment.objective import (
    clipped_policy_loss,
    group_advantages,
    kl_estimate,
    token_log_probabilities,
)
from vapi_core.models.policy import Condition, Policy
from vapi_core.models.tokenizer import Tokenizer
from vapi_core.randomness import stream
from vapi_core.sampling import SamplingConfig, generate, guide
from vapi_core.training import Slots


@dataclass(frozen=True)
class ArGrpoConfig:
    """Hyper-parameters of the method."""

    group_size: int = 8  # G, rollouts of a condition
    guidance_scale: float = 1.0  # of the rollouts and of the policy; 1 is none
    kl_weight: float = 0.1
    clip_epsilon: float = 0.2
    advantage_clamp: float = 5.0


class ArGrpo:
    """The objective of AR-GRPO, for `vapi_core.training.train`. Tokenizer, reward models and base are frozen."""

    def __init__(
        self,
        generator: Policy,
        tokenizer: Tokenizer,
        rewards: list[tuple[float, ExternalReward]],
        data: AlignmentData,
        config: ArGrpoConfig,
        seed: int,
        base: Policy | None = None,
    ):
        assert rewards and (base is not None or config.kl_weight == 0)
        self.generator, self.tokenizer = generator.eval(), tokenizer.eval().requires_grad_(False)
        self.rewards, self.data, self.config, self.seed, self.base = rewards, data, config, seed, base

    def __call__(self, slots: Slots) -> tuple[Tensor, dict[str, Tensor]]:
        config = self.config
        _, condition = self.data.batch(slots.items)  # [B]
        condition = condition.repeat_interleave(config.group_size)  # [B * G]
        rollouts = self._roll_out(condition, slots)  # [B * G, T]
        groups = (len(slots.items), config.group_size)
        values = self._reward(rollouts, slots.items.repeat(config.group_size))
        rewards = torch.stack([w * values[r.name] for w, r in self.rewards]).sum(0).unflatten(0, groups)  # [B, G]
        advantages = group_advantages(rewards, config.advantage_clamp).flatten()[:, None]  # [B * G, 1]

        log_p = self._log_probabilities(self.generator, condition, rollouts)  # [B * G, 1, T]
        ratio = (log_p - log_p.detach()).exp()
        loss = clipped_policy_loss(ratio, advantages, config.clip_epsilon).mean()
        metrics = {
            "reward": rewards.mean(),
            **{f"reward_{name}": value.mean() for name, value in values.items()},
            "reward_spread": rewards.std(1).mean(),
            "advantage_magnitude": advantages.abs().mean(),
            "ratio": ratio.detach().mean(),
        }
        if config.kl_weight:
            assert self.base is not None
            with torch.no_grad():
                base_log_p = self._log_probabilities(self.base, condition, rollouts)
            kl = kl_estimate(log_p, base_log_p).mean()
            metrics["kl"] = kl.detach()
            loss = loss + config.kl_weight * kl
        return loss, metrics

    def _roll_out(self, condition: Condition, slots: Slots) -> Tensor:
        """Sequences [B * G, T], drawn token by token; every image's draws come from its own stream."""
        shape = (self.config.group_size, self.generator.config.length)
        rows = [stream(self.seed, "rollout", slots.step, p).random(shape, dtype=np.float32) for p in slots.positions]
        uniforms = torch.from_numpy(np.concatenate(rows)).to(condition.device)
        sampling = SamplingConfig(guidance_scale=self.config.guidance_scale)
        rollouts = generate(self.generator, condition, uniforms, sampling)
        last = self.generator.config.codebook_size - 1
        return rollouts.clone().clamp_(max=last)  # inference tensors allow no backward; NaN shows in the loss

    @torch.no_grad()
    def _reward(self, rollouts: Tensor, items: np.ndarray) -> dict[str, Tensor]:
        """Unweighted rewards, each [B * G], by the name of their model; rollout i is for the condition of items[i]."""
        images = self.tokenizer.decode(rollouts).clamp(-1, 1)
        return {reward.name: reward(images, items) for _, reward in self.rewards}

    def _log_probabilities(self, generator: Policy, condition: Condition, rollouts: Tensor) -> Tensor:
        """Log-probabilities [B * G, 1, T] of rollouts [B * G, T] under the guided distribution they are drawn from."""
        scale, count = self.config.guidance_scale, len(rollouts)
        prefix = rollouts[:, :-1]
        if scale != 1.0:
            condition = generator.append_null(condition)
            prefix = prefix.repeat(2, 1)
        return token_log_probabilities(guide(generator(condition, prefix), scale, count), rollouts[:, None])
