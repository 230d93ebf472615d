"""The authors' schedule, which ours is measured against, written as plainly as the paper and its code are described.

Each alignment step encodes its images, decodes in float32, computes the reference's perceptual features G times, runs
the policy without gradient for rollouts and old log-probabilities, then the frozen base and the policy once more with
every context repeated G times. The sampler allocates its caches for each batch, copies them at every token and attends
over all of their length. The tokens are those of a file per image, encoded one by one. Departures, so that results can
be compared: dropout is off, and random numbers are the image's own stream.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vapi_core.alignment.noise import corrupt_prefix, draw_noise
from vapi_core.alignment.reward import PerceptualDistance
from vapi_core.alignment.va_pi import VaPiConfig
from vapi_core.data.batches import AlignmentData
from vapi_core.data.images import to_tensor
from vapi_core.models.llamagen.generator import Attention, Generator, rotate, widened
from vapi_core.models.llamagen.tokenizer import Tokenizer
from vapi_core.randomness import stream
from vapi_core.sampling.sampler import SamplingConfig, filtered_probabilities, invert_cdf
from vapi_core.training.loop import MicroBatch


def align_step(
    generator: Generator,
    base: Generator,
    tokenizer: Tokenizer,
    perceptual: PerceptualDistance | None,
    data: AlignmentData,
    config: VaPiConfig,
    seed: int,
    batch: MicroBatch,
    contexts_at_a_time: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """One update's gradients, added to those of `generator`; returns its loss and rewards [B, G].

    `contexts_at_a_time` accumulates the gradient over parts of the B * G repeated contexts, where memory is short.
    `dtype` is of the policy's and the base's forwards, by autocast.
    """

    def logits_of(policy: Generator, *inputs: Tensor) -> Tensor:
        with torch.autocast(inputs[0].device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            return policy(*inputs)

    groups = config.group_size
    _, class_ids = data.batch(batch.items)  # [B]
    assert isinstance(class_ids, Tensor), "the authors' class-to-image trainer"
    images = data.reference_images(batch.items)  # [B, 3, H, W]
    with torch.no_grad():
        tokens = tokenizer.encode(images)  # [B, T]
        prefix = tokens[:, :-1]
        if config.noise_ratio > 0:
            codes, kernel = generator.config.codebook_size, config.noise_kernel
            noise = draw_noise(seed, batch.step, batch.positions, prefix.shape[1], codes, kernel)
            uniforms, replacements = (t.to(prefix.device) for t in noise)
            prefix = corrupt_prefix(prefix, config.noise_ratio, uniforms, replacements, codes, kernel)

        logits = logits_of(generator, class_ids, prefix)  # [B, T, V]
        shape = (tokens.shape[1], groups)
        rows = [stream(seed, "rollout", batch.step, p).random(shape, dtype=np.float32) for p in batch.positions]
        draws = torch.from_numpy(np.stack(rows)).to(logits.device)
        rollouts = invert_cdf(logits.softmax(-1), draws).transpose(1, 2).flatten(0, 1)  # [B * G, T]
        old = _chosen(logits.repeat_interleave(groups, 0), rollouts)  # [B * G, T]

        repeated = images.repeat_interleave(groups, 0)
        factor = tokenizer.config.downsample
        decoded = tokenizer.decode(rollouts, (images.shape[2] // factor, images.shape[3] // factor))
        reward = -config.reward.mse * (decoded - repeated).square().mean((1, 2, 3))
        if perceptual is not None:
            distance = perceptual.distance(perceptual.features(decoded), perceptual.features(repeated))
            reward = reward - config.reward.perceptual * distance
        rewards = reward.unflatten(0, (-1, groups))  # [B, G]
        wide = rewards.double()
        advantages = (wide - wide.mean(1, keepdim=True)) / (wide.std(1, keepdim=True) + 1e-8)
        advantages = advantages.clamp(-config.advantage_clamp, config.advantage_clamp).float().flatten()[:, None]

    contexts = (class_ids.repeat_interleave(groups), prefix.repeat_interleave(groups, 0))
    targets = tokens.repeat_interleave(groups, 0)
    total = torch.zeros((), device=logits.device)
    del logits
    at_a_time = contexts_at_a_time or len(rollouts)
    for part in torch.arange(len(rollouts), device=rollouts.device).split(at_a_time):
        inputs = tuple(context[part] for context in contexts)
        with torch.no_grad():
            reference = _chosen(logits_of(base, *inputs), rollouts[part])
        logits = logits_of(generator, *inputs)
        new = _chosen(logits, rollouts[part])
        ratio = (new - old[part]).exp()
        a = advantages[part]
        clipped = ratio.clamp(1 - config.clip_epsilon, 1 + config.clip_epsilon) * a
        loss = -torch.minimum(ratio * a, clipped).mean()
        if config.regularizer == "ce":
            loss = loss + config.regularizer_weight * F.cross_entropy(logits.flatten(0, 1), targets[part].flatten())
        elif config.regularizer == "kl":
            kl = (reference - new).exp() - (reference - new) - 1
            loss = loss + config.regularizer_weight * kl.mean()
        loss = loss * (len(part) / len(rollouts))
        loss.backward()
        total += loss.detach()
    return {"loss": total, "rewards": rewards}


def _chosen(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probabilities [N, T] of tokens [N, T] under logits [N, T, V]."""
    return logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]


@torch.no_grad()
def generate(generator: Generator, class_ids: Tensor, uniforms: Tensor, config: SamplingConfig) -> Tensor:
    """Tokens [B, T] of classes [B] and uniforms [B, T], guided by one scale throughout."""
    batch, length = uniforms.shape
    guided = config.guidance_scale != 1.0
    if guided:
        class_ids = torch.cat([class_ids, torch.full_like(class_ids, generator.null_class)])
    shape = generator.config
    size = shape.condition_tokens + length
    heads = shape.kv_heads or shape.heads
    weight = generator.output.weight
    sizes = (len(class_ids), heads, size, shape.head_dim)
    caches = [
        [torch.zeros(sizes, device=weight.device, dtype=weight.dtype) for _ in ("keys", "values")]
        for _ in range(shape.layers)
    ]
    causal = torch.ones(size, size, dtype=torch.bool, device=weight.device).tril()
    table = generator.rotary.to(weight.device)
    tokens = torch.empty(batch, length, dtype=torch.long, device=weight.device)
    x = generator.cls_embedding(class_ids)
    for position in range(length):
        if position > 0:
            previous = tokens[:, position - 1]
            x = generator.tok_embeddings(previous.repeat(2) if guided else previous)[:, None]
        at = torch.tensor([position], device=weight.device)
        for block, (keys, values) in zip(generator.layers, caches, strict=True):
            x = x + _attend(
                block.attention, block.attention_norm(x), table[at], at, keys, values, causal[None, None, at]
            )
            x = x + block.feed_forward(block.ffn_norm(x))
        logits = widened(generator.output(generator.norm(x)))[:, -1]
        if guided:
            conditional, unconditional = logits.split(batch)
            logits = unconditional + (conditional - unconditional) * config.guidance_scale
        probabilities = filtered_probabilities(logits, config.temperature, config.top_k, config.top_p)
        tokens[:, position] = invert_cdf(probabilities, uniforms[:, position, None])[:, 0]
    return tokens


def _attend(
    attention: Attention, x: Tensor, table: Tensor, at: Tensor, keys: Tensor, values: Tensor, mask: Tensor
) -> Tensor:
    """Attention of one token over the whole cache [B, kv_heads, S, head_dim], which is copied on the way."""
    heads, kv = attention.config.heads, attention.kv_heads
    q, k, v = attention.wqkv(x).unflatten(-1, (-1, attention.config.head_dim)).split([heads, kv, kv], dim=2)
    q, k, v = (t.transpose(1, 2) for t in (rotate(q, table), rotate(k, table), v))
    keys[:, :, at], values[:, :, at] = k, v
    k, v = (cache.repeat_interleave(heads // kv, dim=1) for cache in (keys, values))
    h = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return attention.wo(h.transpose(1, 2).flatten(2))


@torch.no_grad()
def tokenize(tokenizer: Tokenizer, images: np.ndarray, device: torch.device, folder: Path) -> None:
    """Tokens of uint8 images [N, H, W, 3], one at a time, each in a file of its own."""
    for i in range(len(images)):
        tokens = tokenizer.encode(to_tensor(images[i : i + 1], device))
        np.save(folder / f"{i}.npy", tokens.cpu().numpy())
