"""Checks of the generator, its guidance and its sampling filter."""

import math
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tests.parity.fixtures import Check, Fixture, close, exact
from vapi_core.alignment.objective import prior_loss
from vapi_core.models.generator import Generator, GeneratorConfig, KVCache, rotary_table
from vapi_core.sampling import SamplingConfig, filtered_probabilities, generate, guidance_scales, guide


def generator_config(config: dict[str, Any], **dropouts: float) -> GeneratorConfig:
    """Our configuration of an official one."""
    if config.get("ffn_dim_multiplier") is not None or config.get("cls_token_num", 1) != 1:
        raise NotImplementedError("ffn_dim_multiplier and more than one class token are not supported")
    return GeneratorConfig(
        dim=config["dim"],
        layers=config["n_layer"],
        heads=config["n_head"],
        grid=math.isqrt(config["block_size"]),
        codebook_size=config["vocab_size"],
        classes=config["num_classes"],
        kv_heads=config.get("n_kv_head"),
        multiple_of=config.get("multiple_of", 256),
        rope_base=config.get("rope_base", 10000.0),
        norm_eps=config.get("norm_eps", 1e-5),
        **dropouts,  # type: ignore[arg-type]
    )


def load_generator(fixture: Fixture, prefix: str = "weights.") -> Generator:
    generator = Generator(generator_config(fixture.description["config"]))
    generator.load_state_dict(fixture.weights(prefix))
    return generator.eval()


@torch.inference_mode()
def greedy(generator: Generator, class_ids: Tensor, config: SamplingConfig) -> tuple[Tensor, Tensor]:
    """Most likely tokens [B, T], one after another through the KV cache, and the guided logits [B, T, V] of each step."""
    scales = guidance_scales(generator.config.length, config)
    guided = config.guidance_scale != 1.0
    batch = len(class_ids)
    if guided:
        class_ids = torch.cat([class_ids, torch.full_like(class_ids, generator.null_class)])
    cache = KVCache(generator.config, len(class_ids), torch.device("cpu"), torch.float32)
    logits = [guide(generator.prefill(class_ids, cache), scales[0], batch)]
    for position in range(1, generator.config.length):
        token = logits[-1].argmax(-1)
        step = generator.decode_step(token.repeat(2) if guided else token, position, cache)
        logits.append(guide(step, scales[position], batch))
    steps = torch.stack(logits, 1)
    return steps.argmax(-1), steps


def check_greedy(
    generator: Generator, class_ids: Tensor, config: SamplingConfig, tokens: Tensor, logits: Tensor, label: str
) -> Iterator[Check]:
    own_tokens, own_logits = greedy(generator, class_ids, config)
    yield close(f"{label} step logits", own_logits, logits, 2e-4)
    yield exact(f"{label} tokens", own_tokens, tokens)
    uniforms = torch.full(tokens.shape, 0.5)
    only_the_best = SamplingConfig(
        top_k=1,
        guidance_scale=config.guidance_scale,
        guidance_interval=config.guidance_interval,
        guidance_power=config.guidance_power,
    )
    yield exact(f"{label} tokens of generate()", generate(generator, class_ids, uniforms, only_the_best), tokens)


def check_generator(fixture: Fixture) -> Iterator[Check]:
    """llamagen_gpt/c2i_*: teacher-forced logits, losses, greedy generation with and without guidance."""
    generator = load_generator(fixture)
    tokens, class_ids = fixture["in.tokens"], fixture["in.class_ids"]
    with torch.no_grad():
        logits = generator(class_ids, tokens[:, :-1])
        null_logits = generator(torch.full_like(class_ids, generator.null_class), tokens[:, :-1])
    yield close("teacher-forced logits", logits, fixture["out.tf_logits"], 5e-5)
    yield close("teacher-forced logits, null class", null_logits, fixture["out.tf_logits_null_class"], 5e-5)
    yield close("cross-entropy", prior_loss(logits, tokens), fixture["out.ce_loss"], 1e-5)

    none = ("token_dropout", "attention_dropout", "residual_dropout", "ffn_dropout", "class_dropout")
    training = Generator(generator_config(fixture.description["config"], **dict.fromkeys(none, 0.0))).train()
    training.load_state_dict(fixture.weights())
    loss = prior_loss(training(class_ids, tokens[:, :-1]), tokens).detach()
    yield close("training loss", loss, fixture["out.train_mode_nodrop_loss"], 1e-5)

    for name in list(fixture.tensors):
        if found := re.fullmatch(r"out\.(greedy_cfg([\d.]+?)(?:_interval(-?\d+))?)", name):
            label, scale, interval = found.groups()
            config = SamplingConfig(guidance_scale=float(scale), guidance_interval=int(interval or -1))
            yield from check_greedy(
                generator, class_ids, config, fixture[name], fixture[f"{name}_step_logits"], label.replace("_", " ")
            )


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
