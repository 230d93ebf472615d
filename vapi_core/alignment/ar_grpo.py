"""AR-GRPO, a rival of tables 2 and 3: free-running rollouts, rewarded by external models, held near the base by a KL.

Yuan et al. 2025, arXiv:2508.06924. Of every image only its condition, a class or a caption, is used: G sequences are
drawn token by token with guidance, decoded, rewarded, and compared within their group. Everything after that is VA-π's
own objective code. The policy is the guided distribution itself: its log-probabilities come from guided logits, the
unconditional half with its gradient, so that the update is on-policy and the ratio exactly 1 in value. The KL to the
base is between guided distributions too. Rewards are those of `external_reward.py`; the paper's MANIQA and VLM judges
are not among them.
"""

from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from vapi_core import memory
from vapi_core.alignment.external_reward import ClassLikelihood, ExternalReward, PromptSimilarity
from vapi_core.alignment.method import Method, Need, Problems, Setting
from vapi_core.alignment.objective import (
    Clamp,
    ClipEpsilon,
    GroupSize,
    clipped_policy_loss,
    group_advantages,
    group_metrics,
    kl_estimate,
)
from vapi_core.data.batches import AlignmentData
from vapi_core.limits import Checked, Guidance, Weight
from vapi_core.memory import even_parts, how_many
from vapi_core.models.llamagen.tokenizer import Tokenizer, decode_bytes
from vapi_core.models.logits import token_log_probabilities
from vapi_core.models.policy import Condition, Policy
from vapi_core.randomness import stream
from vapi_core.sampling.sampler import SamplingConfig, generate, guide, sequence_bytes
from vapi_core.training.loop import InParts, Loss, MicroBatch, Part

LOGITS_BYTES = 24  # of each logit of a pass: itself in both types, guided, its gradient, and what softmax makes of it


@dataclass(frozen=True)
class ExternalRewardWeights(Checked):
    """Weight of each reward model; 0 leaves it out."""

    class_likelihood: Weight = 0.0  # of the wanted class, by the classifier that rewards
    clip_score: Weight = 1.0  # cosine of image and prompt, CLIP ViT-L/14
    hpsv2: Weight = 1.0  # the same, HPSv2


@dataclass(frozen=True, kw_only=True)
class ArGrpoConfig(Checked):
    """Hyper-parameters of the method."""

    group_size: GroupSize = 8  # G, rollouts of a condition
    guidance_scale: Guidance = 1.0  # of the rollouts and of the policy; 1 is none
    kl_weight: Weight = 0.1
    clip_epsilon: ClipEpsilon = 0.2
    advantage_clamp: Clamp = 5.0
    rewards: ExternalRewardWeights = field(default_factory=ExternalRewardWeights)
    prompt: str = "a photo of {class}"  # what clip_score and hpsv2 compare with where there are no captions
    clip_checkpoint: str | None = None  # None: the hub's cache
    hpsv2_checkpoint: str | None = None


class ArGrpo(InParts):
    """The objective of AR-GRPO, for `vapi_core.training.loop.train`. Tokenizer, reward models and base are frozen."""

    def __init__(
        self,
        generator: Policy,
        tokenizer: Tokenizer,
        rewards: list[tuple[float, ExternalReward]],
        data: AlignmentData,
        config: ArGrpoConfig,
        seed: int,
        base: Policy | None = None,
        part_bytes: int | None = None,
    ):
        assert rewards and (base is not None or config.kl_weight == 0)
        self.generator, self.tokenizer = generator.eval(), tokenizer.eval().requires_grad_(False)
        self.rewards, self.data, self.config, self.seed, self.base = rewards, data, config, seed, base
        self.part_bytes = part_bytes or memory.part_bytes(data.device)

    def parts(self, batch: MicroBatch) -> list[Part]:
        """Draws and rewards all rollouts; what is left for the parts is the loss of some of them each."""
        config = self.config
        _, condition = self.data.batch(batch.items)  # [B]
        condition = condition.repeat_interleave(config.group_size)  # [B * G]
        rollouts = self._roll_out(condition, batch)  # [B * G, T]
        groups = (len(batch.items), config.group_size)
        values = self._reward(rollouts, batch.items.repeat(config.group_size))
        rewards = torch.stack([w * values[r.name] for w, r in self.rewards]).sum(0).unflatten(0, groups)  # [B, G]
        advantages = group_advantages(rewards, config.advantage_clamp).flatten()[:, None]  # [B * G, 1]
        metrics = group_metrics(rewards, values, advantages)
        return [
            Part(
                (rows.stop - rows.start) / len(rollouts),
                partial(self._loss, condition[rows], rollouts[rows], advantages[rows], metrics),
            )
            for rows in even_parts(len(rollouts), self._at_a_time(self._loss_bytes()))
        ]

    def _loss(self, condition: Condition, rollouts: Tensor, advantages: Tensor, metrics: dict[str, Tensor]) -> Loss:
        """Mean loss of rollouts [N, T] with advantages [N, 1]; `metrics` are those of all rollouts."""
        config = self.config
        log_p = self._log_probabilities(self.generator, condition, rollouts)  # [N, 1, T]
        ratio = (log_p - log_p.detach()).exp()
        loss = clipped_policy_loss(ratio, advantages, config.clip_epsilon).mean()
        metrics = metrics | {"ratio": ratio.detach().mean()}
        if config.kl_weight:
            assert self.base is not None
            with torch.no_grad():
                base_log_p = self._log_probabilities(self.base, condition, rollouts)
            kl = kl_estimate(log_p, base_log_p).mean()
            metrics["kl"] = kl.detach()
            loss = loss + config.kl_weight * kl
        return loss, metrics

    def _at_a_time(self, each: int) -> int:
        return how_many(self.part_bytes, each, 2**20, share=1.0)

    def _images_at_a_time(self) -> int:
        side = self.generator.config.grid * self.tokenizer.config.downsample
        itemsize = self.tokenizer.post_quant_conv.weight.dtype.itemsize
        return self._at_a_time(decode_bytes(self.tokenizer.config, side * side, itemsize))

    def _loss_bytes(self) -> int:
        """About what the loss of one rollout keeps for its backward."""
        policy, rows = self.generator.config, 2 if self.config.guidance_scale != 1.0 else 1
        return rows * (self.generator.activation_bytes() + LOGITS_BYTES * policy.length * policy.codebook_size)

    def _roll_out(self, condition: Condition, batch: MicroBatch) -> Tensor:
        """Sequences [B * G, T], drawn token by token; every image's draws come from its own stream."""
        shape = (self.config.group_size, self.generator.config.length)
        rows = [stream(self.seed, "rollout", batch.step, p).random(shape, dtype=np.float32) for p in batch.positions]
        uniforms = torch.from_numpy(np.concatenate(rows)).to(condition.device)
        at_a_time = self._at_a_time(sequence_bytes(self.generator, self.config.guidance_scale != 1.0))
        drawn = [self._draw(condition[part], uniforms[part]) for part in even_parts(len(uniforms), at_a_time)]
        last = self.generator.config.codebook_size - 1
        return torch.cat(drawn).clamp_(max=last)  # a copy: inference tensors allow no backward; NaN shows in the loss

    def _draw(self, condition: Condition, uniforms: Tensor) -> Tensor:
        """Sequences [N, T] of N conditions and uniforms [N, T]."""
        return generate(self.generator, condition, uniforms, SamplingConfig(guidance_scale=self.config.guidance_scale))

    @torch.no_grad()
    def _reward(self, rollouts: Tensor, items: np.ndarray) -> dict[str, Tensor]:
        """Unweighted rewards, each [B * G], by the name of their model; rollout i is for the condition of items[i]."""
        values: dict[str, list[Tensor]] = {reward.name: [] for _, reward in self.rewards}
        for part in even_parts(len(rollouts), self._images_at_a_time()):
            images = self.tokenizer.decode(rollouts[part]).clamp(-1, 1)
            for _, reward in self.rewards:
                values[reward.name].append(reward(images, items[part]))
        return {name: torch.cat(parts) for name, parts in values.items()}

    def _log_probabilities(self, generator: Policy, condition: Condition, rollouts: Tensor) -> Tensor:
        """Log-probabilities [B * G, 1, T] of rollouts [B * G, T] under the guided distribution they are drawn from."""
        scale, count = self.config.guidance_scale, len(rollouts)
        prefix = rollouts[:, :-1]
        if scale != 1.0:
            condition = generator.append_null(condition)
            prefix = prefix.repeat(2, 1)
        return token_log_probabilities(guide(generator(condition, prefix), scale, count), rollouts[:, None])


def open_rewards(config: ArGrpoConfig, setting: Setting) -> list[tuple[float, ExternalReward]]:
    """The weighted reward models, frozen, for the items of the data set."""
    networks = setting.networks
    rewards: list[tuple[float, ExternalReward]] = []
    if weight := config.rewards.class_likelihood:
        rewards.append((weight, ClassLikelihood(networks.reward_classifier(), networks.class_labels())))
    for name, checkpoint in (("clip_score", config.clip_checkpoint), ("hpsv2", config.hpsv2_checkpoint)):
        if weight := getattr(config.rewards, name):
            from vapi_core.scoring.preference import load_preference_model  # imports open_clip, which takes seconds

            model = load_preference_model(name.removesuffix("_score"), checkpoint, setting.device)
            rewards.append((weight, PromptSimilarity(name, model, networks.prompts(config.prompt))))
    return rewards


def open_ar_grpo(config: ArGrpoConfig, setting: Setting) -> ArGrpo:
    base = setting.networks.base() if config.kl_weight else None
    rewards = open_rewards(config, setting)
    s = setting
    return ArGrpo(s.generator, s.tokenizer, rewards, s.data, config, s.seed, base, s.part_bytes)


def needs(config: ArGrpoConfig) -> frozenset[Need]:
    networks: set[Need] = {"reward-classifier", "class-labels"} if config.rewards.class_likelihood else set()
    if config.rewards.clip_score:
        networks.add("clip_score")
    if config.rewards.hpsv2:
        networks.add("hpsv2")
    return frozenset(networks)


def problems(config: ArGrpoConfig) -> Problems:
    rewards = config.rewards
    if not (rewards.class_likelihood or rewards.clip_score or rewards.hpsv2):
        yield "rewards", "at least one model needs a weight above 0."
    if "{class}" not in config.prompt and (rewards.clip_score or rewards.hpsv2):
        yield "prompt", "the prompt of a class needs a place for its name, {class}."


METHOD = Method(ArGrpoConfig, open_ar_grpo, needs, problems=problems, shards=False)
