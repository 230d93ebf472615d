"""Checks of the generator, its guidance and its sampling filter."""

import math
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tests.parity.fixtures import Check, Fixture, close, exact
from vapi_core.models.llamagen.generator import Generator, GeneratorConfig, caption_attention_mask, rotary_table
from vapi_core.models.logits import next_token_loss
from vapi_core.models.policy import Captions, Condition, Policy, left_pad
from vapi_core.sampling.sampler import SamplingConfig, filtered_probabilities, generate, guidance_scales, guide


def generator_config(config: dict[str, Any], **dropouts: float) -> GeneratorConfig:
    """Our configuration of an official one."""
    captions = config.get("model_type") == "t2i"
    if config.get("ffn_dim_multiplier") is not None or (config.get("cls_token_num", 1) != 1 and not captions):
        raise NotImplementedError("ffn_dim_multiplier and more than one class token are not supported")
    condition = (
        {"caption_dim": config["caption_dim"], "caption_tokens": config["cls_token_num"]}
        if captions
        else {"classes": config["num_classes"]}
    )
    return GeneratorConfig(
        dim=config["dim"],
        layers=config["n_layer"],
        heads=config["n_head"],
        grid=math.isqrt(config["block_size"]),
        codebook_size=config["vocab_size"],
        kv_heads=config.get("n_kv_head"),
        multiple_of=config.get("multiple_of", 256),
        rope_base=config.get("rope_base", 10000.0),
        norm_eps=config.get("norm_eps", 1e-5),
        **condition,
        **dropouts,  # type: ignore[arg-type]
    )


def load_generator(fixture: Fixture, prefix: str = "weights.") -> Generator:
    generator = Generator(generator_config(fixture.description["config"]))
    generator.load_state_dict(fixture.weights(prefix))
    return generator.eval()


@torch.inference_mode()
def greedy(generator: Policy, condition: Condition, config: SamplingConfig) -> tuple[Tensor, Tensor]:
    """Most likely tokens [B, T], one by one through the KV cache, and the guided logits [B, T, V] of each step."""
    scales = guidance_scales(generator.config.length, config)
    guided = config.guidance_scale != 1.0
    batch = len(condition)
    if guided:
        condition = generator.append_null(condition)
    cache = generator.new_cache(len(condition))
    logits = [guide(generator.prefill(condition, cache), scales[0], batch)]
    for position in range(1, generator.config.length):
        token = logits[-1].argmax(-1)
        step = generator.decode_step(token.repeat(2) if guided else token, position, cache)
        logits.append(guide(step, scales[position], batch))
    steps = torch.stack(logits, 1)
    return steps.argmax(-1), steps


def check_greedy(
    generator: Policy, condition: Condition, config: SamplingConfig, tokens: Tensor, logits: Tensor, label: str
) -> Iterator[Check]:
    own_tokens, own_logits = greedy(generator, condition, config)
    yield close(f"{label} step logits", own_logits, logits, 2e-4)
    yield exact(f"{label} tokens", own_tokens, tokens)
    uniforms = torch.full(tokens.shape, 0.5)
    only_the_best = SamplingConfig(
        top_k=1,
        guidance_scale=config.guidance_scale,
        guidance_interval=config.guidance_interval,
        guidance_power=config.guidance_power,
    )
    yield exact(f"{label} tokens of generate()", generate(generator, condition, uniforms, only_the_best), tokens)


def check_generator(fixture: Fixture) -> Iterator[Check]:
    """llamagen_gpt/c2i_*: teacher-forced logits, losses, greedy generation with and without guidance."""
    generator = load_generator(fixture)
    tokens, class_ids = fixture["in.tokens"], fixture["in.class_ids"]
    with torch.no_grad():
        logits = generator(class_ids, tokens[:, :-1])
        null_logits = generator(torch.full_like(class_ids, generator.null_class), tokens[:, :-1])
    yield close("teacher-forced logits", logits, fixture["out.tf_logits"], 5e-5)
    yield close("teacher-forced logits, null class", null_logits, fixture["out.tf_logits_null_class"], 5e-5)
    yield close("cross-entropy", next_token_loss(logits, tokens), fixture["out.ce_loss"], 1e-5)

    training = without_dropout(fixture)
    loss = next_token_loss(training(class_ids, tokens[:, :-1]), tokens).detach()
    yield close("training loss", loss, fixture["out.train_mode_nodrop_loss"], 1e-5)
    yield from check_all_greedy(fixture, generator, "greedy_", class_ids)


def without_dropout(fixture: Fixture) -> Generator:
    """The fixture's generator in training mode with all dropouts off."""
    none = ("token_dropout", "attention_dropout", "residual_dropout", "ffn_dropout", "class_dropout")
    generator = Generator(generator_config(fixture.description["config"], **dict.fromkeys(none, 0.0))).train()
    generator.load_state_dict(fixture.weights())
    return generator


def check_all_greedy(fixture: Fixture, generator: Generator, prefix: str, condition: Condition) -> Iterator[Check]:
    """All greedy generations of a fixture whose names begin with `prefix`, by their scale and interval of guidance."""
    for name in list(fixture.tensors):
        if found := re.fullmatch(rf"out\.({prefix}cfg([\d.]+?)(?:_interval(-?\d+))?)", name):
            label, scale, interval = found.groups()
            config = SamplingConfig(guidance_scale=float(scale), guidance_interval=int(interval or -1))
            yield from check_greedy(
                generator, condition, config, fixture[name], fixture[f"{name}_step_logits"], label.replace("_", " ")
            )


def check_caption_generator(fixture: Fixture) -> Iterator[Check]:
    """llamagen_gpt/t2i_*: left padding, attention mask, teacher-forced logits, losses, greedy generation.

    "nomask" generations were made without the captions' mask, so that padding is read like text.
    """
    generator, tokens = load_generator(fixture), fixture["in.tokens"]
    captions = left_pad(fixture["in.caption_embs_right_padded"], fixture["in.emb_masks_right_padded"])
    yield close("left-padded features", captions.features, fixture["in.caption_embs_left_padded"], 0.0)
    yield exact("left-padded mask", captions.mask, fixture["in.emb_masks_left_padded"].bool())
    everything = Captions(captions.features, torch.ones_like(captions.mask))
    length = generator.config.condition_tokens + generator.config.length
    yield exact("attention mask", caption_attention_mask(captions.mask, 0, length), fixture["in.attn_mask"].bool())
    with torch.no_grad():
        logits, unmasked = (generator(condition, tokens[:, :-1]) for condition in (captions, everything))
        embedded = torch.cat([generator.cls_embedding(captions), generator.tok_embeddings(tokens[:, :-1])], 1)
        raw = generator._trunk(embedded, 0, None, captions.mask)
        training = prior_losses(without_dropout(fixture)(captions, tokens[:, :-1]), tokens)
    yield close("teacher-forced logits", logits, fixture["out.tf_logits"], 5e-5)
    yield close("teacher-forced logits without the mask", unmasked, fixture["out.tf_logits_nomask"], 5e-5)
    yield close("logits of all positions", raw, fixture["out.tf_logits_raw"], 5e-5)
    yield close("cross-entropy", next_token_loss(logits, tokens), fixture["out.ce_loss"], 1e-5)
    valid = fixture["in.valid"].bool()
    yield close("training loss", training[valid].mean(), fixture["out.train_mode_nodrop_loss_valid"], 1e-5)
    yield from check_all_greedy(fixture, generator, "greedy_", captions)
    yield from check_all_greedy(fixture, generator, "greedy_nomask_", everything)


def prior_losses(logits: Tensor, tokens: Tensor) -> Tensor:
    """The prior loss of each item, [B]."""
    return torch.stack([next_token_loss(row[None], own[None]) for row, own in zip(logits, tokens, strict=True)])


def check_guidance_schedule(fixture: Fixture) -> Iterator[Check]:
    """llamagen_gpt/*power_cosine*: VA-π's guidance schedule on the weights of another fixture."""
    source = fixture.other(fixture.description["weights_from"])
    generator = load_generator(source)
    for case in fixture.description["cases"]:
        i, kind = case["index"], case.get("cfg_type")
        if kind not in (None, "constant", "power-cosine"):
            raise NotImplementedError(f"guidance schedule {kind}")
        power = case["cfg_power"] if kind == "power-cosine" else None
        config = SamplingConfig(guidance_scale=case["cfg_scale"], guidance_power=power)
        tokens, logits = fixture[f"out.greedy_{i}"], fixture[f"out.step_logits_{i}"]
        yield from check_greedy(generator, source["in.class_ids"], config, tokens, logits, f"case {i}")


ROTARY = re.compile(r"out\.freqs_grid(\d+)_hd(\d+)_cls(\d+)")


def check_rotary(fixture: Fixture) -> Iterator[Check]:
    """llamagen_gpt/rope_2d: position tables."""
    for name in list(fixture.tensors):
        if found := ROTARY.fullmatch(name):
            grid, head_dim, condition = map(int, found.groups())
            yield close(name.removeprefix("out."), rotary_table(grid, head_dim, condition), fixture[name], 1e-6)


def check_filter(fixture: Fixture) -> Iterator[Check]:
    """llamagen_gpt/sampling_filter: temperature, top-k, top-p."""
    for case in fixture.description["combos"]:
        i = case["index"]
        label = "temperature {temperature} top-k {top_k} top-p {top_p}".format(**case)
        probabilities = filtered_probabilities(fixture["in.logits"], case["temperature"], case["top_k"], case["top_p"])
        expected = fixture[f"out.probs_{i}"]
        yield close(label, probabilities, expected, 1e-6)
        yield exact(f"{label}, zeros", probabilities == 0, expected == 0)
        if f"out.argmax_{i}" in fixture:
            yield exact(f"{label}, argmax", probabilities.argmax(-1, keepdim=True), fixture[f"out.argmax_{i}"])
