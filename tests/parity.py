"""Checks against the numbers of the official code: `python -m tests.parity DIR`, or `make parity REFERENCE=DIR`.

Every fixture below DIR is recognised by what it holds, not by its name, so that fixtures of the same formats but other
names and sizes are checked too. A fixture is one or more files of the same stem; the formats and the tolerances are
those of the README beside them. One row is printed for each: the quantity that comes closest to (or furthest beyond) its
tolerance. Fixtures that nothing here recognises, and expected tensors that no check reads, are listed, never skipped.
"""

import json
import math
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.reference import REFERENCE, take
from vapi_core.alignment.noise import corrupt_prefix
from vapi_core.alignment.objective import (
    clipped_policy_loss,
    group_advantages,
    kl_estimate,
    prior_loss,
    token_log_probabilities,
)
from vapi_core.alignment.reward import ReconstructionReward, RewardWeights
from vapi_core.models.checkpoints import WRAPPERS
from vapi_core.models.generator import OFFICIAL_GENERATORS, Generator, GeneratorConfig, KVCache, rotary_table
from vapi_core.models.tokenizer import OFFICIAL_TOKENIZERS, Tokenizer, TokenizerConfig, VectorQuantizer
from vapi_core.sampling import SamplingConfig, filtered_probabilities, generate, guidance_scales, guide
from vapi_core.training import OptimizationConfig, Slots, train

ABOUT = ("README.md", "MANIFEST.json")  # files about the fixtures
NO_CHECK = "no check yet"


class Check(NamedTuple):
    """One comparison. It passes if `error <= tolerance`; exact ones count mismatches and have tolerance 0."""

    quantity: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance  # false for NaN

    @property
    def severity(self) -> float:
        """Error in tolerances."""
        if self.error == 0:
            return 0.0
        return self.error / self.tolerance if self.tolerance and not math.isnan(self.error) else math.inf


class Fixture:
    """The files of one stem. It remembers which tensors were read, to tell which expected ones no check looked at."""

    def __init__(self, root: Path, stem: Path, suffixes: list[str]):
        self.root, self.stem, self.suffixes = root, stem, suffixes
        self.name = stem.relative_to(root).as_posix()
        self.description: dict[str, Any] = {}
        if ".json" in suffixes:
            content = json.loads(stem.with_name(stem.name + ".json").read_text(encoding="utf-8"))
            self.description = content if isinstance(content, dict) else {}
        tensors_path = stem.with_name(stem.name + ".safetensors")
        self.tensors: dict[str, Tensor] = load_file(tensors_path) if ".safetensors" in suffixes else {}
        self.read: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def __getitem__(self, name: str) -> Tensor:
        self.read.add(name)
        return self.tensors[name]

    def weights(self, prefix: str = "weights.") -> dict[str, Tensor]:
        self.read.update(name for name in self.tensors if name.startswith(prefix))
        return take(self.tensors, prefix)

    def unread(self) -> list[str]:
        """Expected tensors that no check has read."""
        return [n for n in self.tensors if n not in self.read and not n.startswith(("in.", "weights.", "base_weights."))]

    def missing(self) -> list[str]:
        """Tensors that the description lists and that are not there."""
        listed = self.description.get("tensors")
        return [name for name in listed if name not in self.tensors] if isinstance(listed, dict) else []

    def other(self, name: str) -> "Fixture":
        """The fixture called `name`, beside this one or anywhere below the root."""
        beside = self.stem.with_name(name + ".json")
        path = beside if beside.exists() else next(iter(sorted(self.root.rglob(name + ".json"))), None)
        if path is None:
            raise FileNotFoundError(f"{self.name} needs the fixture {name}")
        return Fixture(self.root, path.with_suffix(""), [".json", ".safetensors"])


def exact(quantity: str, actual: Any, expected: Any) -> Check:
    """Counts what differs; a difference of shape counts too."""
    if isinstance(actual, Tensor):
        wrong = (actual != expected).sum().item() if actual.shape == expected.shape else math.inf
    else:
        wrong = 0 if actual == expected else 1
    return Check(quantity, float(wrong), 0.0)


def close(quantity: str, actual: Tensor | float, expected: Tensor | float, tolerance: float) -> Check:
    """Largest absolute difference."""
    a, b = torch.as_tensor(actual).double(), torch.as_tensor(expected).double()
    return Check(quantity, (a - b).abs().max().item() if a.shape == b.shape else math.inf, tolerance)


def close_relative(quantity: str, actual: Tensor | None, expected: Tensor, tolerance: float) -> Check:
    """Largest difference in units of the largest expected value."""
    if actual is None or actual.shape != expected.shape:
        return Check(quantity, math.inf, tolerance)
    return Check(quantity, ((actual - expected).abs().max() / expected.abs().max()).item(), tolerance)


def close_mixed(quantity: str, actual: Tensor | float | None, expected: Tensor | float) -> Check:
    """Policy gradients have 1e-5 absolute plus 1e-4 relative: the largest difference in units of that."""
    label = f"{quantity} / (1e-5 + 1e-4 |x|)"
    if actual is None:
        return Check(label, math.inf, 1.0)
    a, b = torch.as_tensor(actual).double(), torch.as_tensor(expected).double()
    return Check(label, ((a - b).abs() / (1e-5 + 1e-4 * b.abs())).max().item() if a.shape == b.shape else math.inf, 1.0)


# ---------------------------------------------------------------------------------------------------------- generator


def generator_config(config: dict[str, Any], **dropouts: float) -> GeneratorConfig:
    """Our configuration of an official one."""
    if config.get("ffn_dim_multiplier") is not None or config.get("cls_token_num", 1) != 1:
        raise NotImplementedError("ffn_dim_multiplier and more than one class token are not supported")
    optional = {"multiple_of": "multiple_of", "rope_base": "rope_base", "norm_eps": "norm_eps"}
    return GeneratorConfig(
        dim=config["dim"],
        layers=config["n_layer"],
        heads=config["n_head"],
        grid=math.isqrt(config["block_size"]),
        codebook_size=config["vocab_size"],
        classes=config["num_classes"],
        kv_heads=config.get("n_kv_head"),
        **{ours: config[theirs] for ours, theirs in optional.items() if theirs in config},
        **dropouts,
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
        label = f"case {i}"
        yield from check_greedy(
            generator, source["in.class_ids"], config, fixture[f"out.greedy_{i}"], fixture[f"out.step_logits_{i}"], label
        )


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
        probabilities = filtered_probabilities(
            fixture["in.logits"], case["temperature"], case["top_k"], case["top_p"]
        )
        expected = fixture[f"out.probs_{i}"]
        yield close(label, probabilities, expected, 1e-6)
        yield exact(f"{label}, zeros", probabilities == 0, expected == 0)
        if f"out.argmax_{i}" in fixture:
            yield exact(f"{label}, argmax", probabilities.argmax(-1, keepdim=True), fixture[f"out.argmax_{i}"])


# ---------------------------------------------------------------------------------------------------------- tokenizer


def tokenizer_config(config: dict[str, Any]) -> TokenizerConfig:
    """Our configuration of an official one, or of a fixture with its extra options."""
    return TokenizerConfig(
        codebook_size=config["codebook_size"],
        codebook_dim=config["codebook_embed_dim"],
        l2_norm=config["codebook_l2_norm"],
        base_channels=config.get("ch", 128),
        encoder_multipliers=tuple(config.get("encoder_ch_mult") or config["ch_mult"]),
        decoder_multipliers=tuple(config.get("decoder_ch_mult") or config["ch_mult"]),
        res_blocks=config.get("num_res_blocks", 2),
        z_channels=config["z_channels"],
        dropout=config.get("dropout_p", 0.0),
        commitment_weight=config["commit_loss_beta"],
        entropy_weight=config["entropy_loss_ratio"],
    )


def load_tokenizer(fixture: Fixture) -> Tokenizer:
    tokenizer = Tokenizer(tokenizer_config(fixture.description["config"]))
    tokenizer.load_state_dict(fixture.weights())
    return tokenizer.eval()


def check_tokenizer(fixture: Fixture) -> Iterator[Check]:
    """vq_tokenizer/vq*: every station from image to tokens and back, then losses and gradients of a training step."""
    tokenizer = load_tokenizer(fixture)
    if "downsample" in fixture.description:
        yield exact("downsample", tokenizer.config.downsample, fixture.description["downsample"])
    indices = [name.removeprefix("in.image_") for name in fixture.tensors if name.startswith("in.image_")]
    for i in indices:
        images = fixture[f"in.image_{i}"].float()
        with torch.no_grad():
            tokens, before = tokenizer.encode(images), tokenizer.embed(images)
            grid = (before.shape[2], before.shape[3])
            yield close(f"encoder {i}", tokenizer.encoder(images), fixture[f"out.encoder_{i}"], 1e-4)
            yield close(f"before quantization {i}", before, fixture[f"out.pre_quant_{i}"], 1e-4)
            yield exact(f"tokens {i}", tokens, fixture[f"out.indices_{i}"])
            yield close(f"codes {i}", tokenizer.quantize(before).codes, fixture[f"out.quant_{i}"], 1e-4)
            yield close(f"code look-up {i}", tokenizer.quantize.look_up(tokens, grid), fixture[f"out.quant_{i}"], 1e-4)
            yield close(f"decoded {i}", tokenizer.decode(tokens, grid), fixture[f"out.decode_code_{i}"], 1e-4)

    images = fixture["in.image_0"].float()
    reconstruction, quantized = tokenizer.train()(images)
    mse = (reconstruction - images).square().mean()
    yield close("training reconstruction", reconstruction.detach(), fixture["out.train_recon"], 1e-4)
    yield close("training MSE", mse.detach(), fixture["out.train_mse"], 1e-5)
    yield close("codebook loss", quantized.codebook_loss.detach(), fixture["out.train_vq_loss"], 1e-5)
    yield close("commitment loss", quantized.commitment_loss.detach(), fixture["out.train_commit_loss"], 1e-5)
    yield close("entropy loss", quantized.entropy_loss.detach(), fixture["out.train_entropy_loss"], 1e-5)
    (mse + quantized.codebook_loss + quantized.commitment_loss + quantized.entropy_loss).backward()
    parameters = dict(tokenizer.named_parameters())
    for name in list(fixture.tensors):
        if name.startswith("grad."):
            gradient = parameters[name.removeprefix("grad.")].grad
            yield close_relative(f"gradient of {name.removeprefix('grad.')}", gradient, fixture[name], 1e-4)


def check_quantizer(fixture: Fixture) -> Iterator[Check]:
    """vq_tokenizer/quantizer_only: codes, losses and gradients of the quantizer alone."""
    embedding = fixture["in.embedding"]
    for case in fixture.description["cases"]:
        i = case["index"]
        config = TokenizerConfig(
            codebook_size=embedding.shape[0],
            codebook_dim=embedding.shape[1],
            l2_norm=case["l2_norm"],
            commitment_weight=case["commit_loss_beta"],
            entropy_weight=case["entropy_loss_ratio"],
        )
        quantizer = VectorQuantizer(config)
        quantizer.embedding.weight.data = embedding.clone()
        z = fixture["in.z"].clone().requires_grad_()
        codes, tokens, codebook_loss, commitment_loss, entropy_loss = quantizer(z)
        ramp = torch.linspace(-1, 1, codes.numel()).view_as(codes)
        ((codes * ramp).sum() + codebook_loss + commitment_loss + entropy_loss).backward()

        def same(quantity: str, actual: Tensor | None, expected: str, i: int = i) -> Check:
            assert actual is not None
            return close(f"case {i} {quantity}", actual.detach(), fixture[f"out.{expected}_{i}"], 1e-5)

        yield exact(f"case {i} tokens", tokens.flatten(), fixture[f"out.idx_{i}"])
        yield exact(f"case {i} tokens of nearest()", quantizer.nearest(z).flatten(), fixture[f"out.idx_{i}"])
        yield same("codes", codes, "zq")
        yield same("codebook loss", codebook_loss, "vq_loss")
        yield same("commitment loss", commitment_loss, "commit_loss")
        yield same("entropy loss", entropy_loss, "entropy_loss")
        yield same("gradient of z", z.grad, "grad_z")
        yield same("gradient of the codebook", quantizer.embedding.weight.grad, "grad_embedding")
        yield same("look-up as a map", quantizer.look_up(tokens, (z.shape[2], z.shape[3])), "entry_chw")
        yield same("look-up as rows", quantizer.codebook[tokens.flatten()], "entry_flat")


# -------------------------------------------------------------------------------------------------------- checkpoints


def check_layout(fixture: Fixture) -> Iterator[Check]:
    """checkpoint_layouts/GPT-*_c2i_*, VQ-*: every tensor of a full-size model, in order."""
    name, layout = fixture.description["official_model"], fixture.description
    config = layout["config"]
    with torch.device("meta"):
        if name.startswith("VQ"):
            model: Tokenizer | Generator = Tokenizer(tokenizer_config(config))
            yield exact("named configuration", model.config, OFFICIAL_TOKENIZERS[name])
        else:
            model = Generator(generator_config(config))
            size = (model.config.dim, model.config.layers, model.config.heads)
            yield exact("named configuration", size, OFFICIAL_GENERATORS[name])
            table = layout["freqs_cis"]
            yield exact("position table", list(model.rotary.shape), table["shape"])
            yield exact("position table in state dict", "rotary" in model.state_dict(), table["in_state_dict"])
    parameters, state = dict(model.named_parameters()), model.state_dict()
    own = [(n, list(t.shape), str(t.dtype), "parameter" if n in parameters else "buffer") for n, t in state.items()]
    official = [(n, d["shape"], f"torch.{d['dtype']}", d["kind"]) for n, d in layout["state_dict"].items()]
    wrong = sum(a != b for a, b in zip(own, official, strict=False)) + abs(len(own) - len(official))
    yield Check(f"name, shape, dtype, kind of {len(official)} tensors", wrong, 0.0)
    yield exact("parameter count", sum(p.numel() for p in parameters.values()), layout["n_parameters"])
    buffers = sum(t.numel() for n, t in state.items() if n not in parameters)
    yield exact("buffer elements", buffers, layout["n_buffer_elements"])


def check_wrappers(fixture: Fixture) -> Iterator[Check]:
    """checkpoint_layouts/checkpoint_formats: under which keys weights may lie, the first one counting."""
    conditions = [re.match(r"'(\w+)' in ckpt", entry["when"]) for entry in fixture.description["order"]]
    yield exact("wrappers, in order", WRAPPERS, tuple(found[1] for found in conditions if found))


# ------------------------------------------------------------------------------------------------------- VA-π, training


@dataclass(frozen=True)
class PolicyStep:
    """Inputs of one policy update and its loss in our form: one context an image, shared by its rollouts."""

    fixture: Fixture

    def logits(self, generator: Generator) -> Tensor:
        return generator(self.fixture["in.class_ids"], self.fixture["in.noisy_prefix"])

    def parts(self, name: str, logits: Tensor, base_logits: Tensor) -> dict[str, Tensor]:
        """Per-token quantities [B, G, T] of the case `name`."""
        fixture, case = self.fixture, self.fixture.description["cases"][name]
        old_name = f"in.old_logps_{name}"
        old = fixture[old_name if old_name in fixture else "in.old_logps"]
        temperature = case["temperature"]
        new = token_log_probabilities(logits, fixture["in.sampled_tokens"], temperature)
        base = token_log_probabilities(base_logits, fixture["in.sampled_tokens"], temperature)
        advantages = group_advantages(fixture["in.rewards"], case["adv_clip_max"])
        ratio, kl = (new - old).exp(), kl_estimate(new, base)
        loss = clipped_policy_loss(ratio, advantages, case["clip_range"])
        if case["use_kl_loss"]:
            loss = loss + case["kl_coef"] * kl
        return {"new_logps": new, "ratio": ratio, "per_token_kl": kl, "per_token_loss": loss, "seq_loss": loss.mean(-1)}

    def loss(self, name: str, logits: Tensor, base_logits: Tensor) -> Tensor:
        case = self.fixture.description["cases"][name]
        loss = self.parts(name, logits, base_logits)["per_token_loss"].mean()
        loss = loss + case["aux_ce_weight"] * prior_loss(logits, self.fixture["in.gt_tokens"])
        return loss / case["gradient_accumulation_steps"]


def check_policy_step(fixture: Fixture) -> Iterator[Check]:
    """vapi/policy_step: noise, advantages, log-probabilities, ratios, losses and gradients of one update."""
    step, cases = PolicyStep(fixture), fixture.description["cases"]
    generator, base = load_generator(fixture), load_generator(fixture, "base_weights.")
    tokens, groups = fixture["in.gt_tokens"], fixture.description["G"]
    prefix = corrupt_prefix(
        tokens[:, :-1],
        fixture.description["noise_prob"],
        fixture["in.noise_uniform"],
        fixture["in.noise_replacement_ids"],
        generator.config.codebook_size,
    )
    yield exact("noisy prefix", prefix, fixture["in.noisy_prefix"])
    with torch.no_grad():
        base_logits = step.logits(base)
    yield close("logits", step.logits(generator).detach(), fixture["out.logits_current"], 5e-5)
    yield close("base logits", base_logits, fixture["out.logits_base"], 5e-5)
    yield close("advantages", group_advantages(fixture["in.rewards"], 5.0), fixture["out.advantages"], 5e-5)
    for name, case in cases.items():
        if "loss" not in case:
            continue
        generator.zero_grad()
        logits = step.logits(generator)
        for part, value in step.parts(name, logits.detach(), base_logits).items():
            if f"out.{name}.{part}" in fixture:
                yield close(f"{name} {part}", value, fixture[f"out.{name}.{part}"], 5e-5)
        loss = step.loss(name, logits, base_logits)
        yield close(f"{name} loss", loss.detach(), fixture[f"out.{name}.loss"], 1e-5)
        loss.backward()
        gradients = {n: p.grad for n, p in generator.named_parameters()}
        norm = torch.stack([g.norm() for g in gradients.values() if g is not None]).norm()
        yield close_mixed(f"{name} gradient norm", norm, case["grad_norm"])
        for parameter, gradient in gradients.items():
            if f"grad_{name}.{parameter}" in fixture:
                expected = fixture[f"grad_{name}.{parameter}"]
                yield close_mixed(f"{name} gradient of {parameter}", gradient, expected)
    for name, case in cases.items():
        if "slice_size" in case:  # the official loop over slices of the flattened [B * G] rows
            source = name.removesuffix("_minibatches")
            with torch.no_grad():
                logits = step.logits(generator)
                rows = step.parts(source, logits, base_logits)["per_token_loss"].flatten(0, 1).split(case["slice_size"])
                repeated = (t.repeat_interleave(groups, 0).split(case["slice_size"]) for t in (logits, tokens))
                for i, (row, row_logits, row_tokens) in enumerate(zip(rows, *repeated, strict=True)):
                    loss = row.mean() + cases[source]["aux_ce_weight"] * prior_loss(row_logits, row_tokens)
                    yield close(f"{name} loss {i}", loss, case["losses"][i], 1e-5)


def check_optimizer(fixture: Fixture) -> Iterator[Check]:
    """vapi/policy_step_optimizer: two updates of the case "both" by our training loop."""
    source = fixture.other(fixture.stem.name.replace("_optimizer", ""))
    step, description = PolicyStep(source), fixture.description
    generator, base = load_generator(source), load_generator(source, "base_weights.")
    with torch.no_grad():
        base_logits = step.logits(base)
    count = len(source["in.class_ids"])
    config = OptimizationConfig(
        learning_rate=description["lr"],
        steps=3,  # the loss after the second update is that of the third step
        batch_size=count,
        weight_decay=description["weight_decay"],
        betas=tuple(description["betas"]),
        gradient_norm=description["max_grad_norm"],
    )
    rows, weights = [], []

    def objective(slots: Slots) -> tuple[Tensor, dict[str, Tensor]]:
        weights.append({name: p.detach().clone() for name, p in generator.named_parameters()})
        return step.loss("both", step.logits(generator), base_logits), {}

    train(generator, objective, config, count=count, seed=0, log=lambda _, row: rows.append(row))
    for name in list(fixture.tensors):
        parameter = name.removeprefix("after1.")
        yield close(f"{parameter} after step 1", weights[1][parameter], fixture[name], 1e-5)
    yield close("loss", rows[0]["loss"], source.description["cases"]["both"]["loss"], 1e-5)
    for i in (1, 2):
        yield close_mixed(f"gradient norm {i}", rows[i - 1]["gradient_norm"], description[f"grad_norm_step{i}"])
        yield close(f"loss after step {i}", rows[i]["loss"], description[f"loss_after_step{i}"], 1e-5)


def check_advantages(fixture: Fixture) -> Iterator[Check]:
    """vapi/advantages. Where all rewards are equal ours are exactly 0, unlike the official ones."""
    for case in fixture.description["cases"]:
        i = case["index"]
        rewards = fixture[f"in.rewards_{i}"]
        yield close(f"case {i}", group_advantages(rewards, math.inf), fixture[f"out.advantages_{i}"], 1e-5)
        clamped = fixture[f"out.advantages_clamped_{i}"]
        yield close(f"case {i} clamped", group_advantages(rewards, 5.0), clamped, 1e-5)
    for case in fixture.description.get("equal_reward_hazard", []):
        equal = torch.full((1, case["G"]), case["value"])
        zeros = torch.zeros(1, case["G"])
        yield exact(f"{case['G']} rewards of {case['value']} give 0", group_advantages(equal, 5.0), zeros)


def check_sampled_log_probabilities(fixture: Fixture) -> Iterator[Check]:
    """vapi/sample_logprobs: log-probabilities of given tokens under temperature, top-k and top-p."""
    logits = fixture["in.logits"]
    for case in fixture.description["cases"]:
        i, settings = case["index"], (case["temperature"], case["top_k"], case["top_p"])
        tokens, expected = fixture[f"in.sampled_{i}"], fixture[f"out.logp_{i}"]
        own = filtered_probabilities(logits, *settings).gather(-1, tokens[..., None])[..., 0].log()
        yield close(f"case {i} per token", own, expected, 1e-5)
        yield close(f"case {i} per sequence", own.sum(-1), fixture[f"out.seq_logp_{i}"], 1e-5)
        if settings[1:] == (0, 1.0):
            shared = token_log_probabilities(logits, tokens[:, None], case["temperature"])[:, 0]
            yield close(f"case {i} as the objective has it", shared, expected, 1e-5)


class StoredDistance:
    """A perceptual distance whose values are given."""

    def __init__(self, values: Tensor):
        self.values = values

    def features(self, images: Tensor) -> list[Tensor]:
        return [images]

    def distance(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        return self.values


def check_reward(fixture: Fixture) -> Iterator[Check]:
    """vapi/reward: terms and total, with L2 and with L1, on the tokenizer and the first images of another fixture."""
    source = fixture.other(fixture.description["vq_fixture"])
    tokenizer, images = load_tokenizer(source), source["in.image_0"].float()
    rollouts, weights = fixture["in.sampled_tokens"], fixture.description["weights"]
    yield exact("reference tokens", tokenizer.encode(images), fixture["out.gt_tokens"])
    with torch.no_grad():
        grid = (images.shape[2] // tokenizer.config.downsample, images.shape[3] // tokenizer.config.downsample)
        first = tokenizer.decode(rollouts[0, :1], grid)[0]
    yield close("decoded rollout", first, fixture["out.pred_image_first"], 1e-4)
    for term, label in (("mse", "l2"), ("l1", "l1")):
        off = {"mse": 0.0, "l1": 0.0, term: weights["rec"]}
        ours = RewardWeights(**off, perceptual=weights["perceptual"], embedding=weights["embedcos"])
        rewards, terms = ReconstructionReward(tokenizer, ours, StoredDistance(fixture["in.fake_lpips"]))(rollouts, images)
        yield close(f"{label} term", terms[term], fixture[f"out.rec_{label}"], 1e-5)
        yield close("embedding term", terms["embedding"], fixture["out.embedcos"], 1e-5)
        yield close(f"reward with {label}", rewards, fixture[f"out.rewards_{label}"], 1e-5)


# -------------------------------------------------------------------------------------------------------------- running

Checker = Callable[[Fixture], Iterator[Check]]


def checker(fixture: Fixture) -> Checker | None:
    """The check for a fixture, by what it holds; none if nothing here knows it."""
    description, tensors = fixture.description, fixture.tensors.keys() | description.get("tensors", {})
    kind = description.get("config", {}).get("model_type", "c2i") if isinstance(description.get("config"), dict) else ""
    layout = "official_model" in description and "state_dict" in description
    recognised: list[tuple[bool, Checker]] = [
        (layout and (kind == "c2i" or description["official_model"].startswith("VQ")), check_layout),
        ("ddp_training_checkpoint_keys" in description, check_wrappers),
        ("weights_from" in description and "out.greedy_0" in tensors, check_guidance_schedule),
        ({"in.class_ids", "in.tokens", "out.tf_logits"} <= tensors and kind == "c2i", check_generator),
        (any(ROTARY.fullmatch(name) for name in tensors), check_rotary),
        ("combos" in description and "out.probs_0" in tensors, check_filter),
        ({"in.image_0", "out.pre_quant_0", "out.train_recon"} <= tensors, check_tokenizer),
        ({"in.z", "in.embedding", "out.zq_0"} <= tensors, check_quantizer),
        ({"in.noisy_prefix", "in.old_logps", "in.rewards"} <= tensors, check_policy_step),
        (any(name.startswith("after1.") for name in tensors), check_optimizer),
        ({"in.rewards_0", "out.advantages_0"} <= tensors, check_advantages),
        ({"in.sampled_0", "out.logp_0"} <= tensors, check_sampled_log_probabilities),
        ({"in.fake_lpips", "out.rewards_l2"} <= tensors, check_reward),
    ]
    return next((check for holds, check in recognised if holds), None)


def find_fixtures(root: Path) -> list[tuple[Path, list[str]]]:
    """Stems of all fixtures below `root` and the suffixes of their files."""
    stems: dict[Path, list[str]] = defaultdict(list)
    for path in sorted(root.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
        if path.is_file() and path.name not in ABOUT and not hidden:
            stems[path.with_suffix("")].append(path.suffix)
    return sorted(stems.items())


@dataclass(frozen=True)
class Result:
    """What came of one fixture; no checks if none is known."""

    name: str
    checks: list[Check]
    unread: list[str]

    @property
    def status(self) -> str:
        if not self.checks:
            return NO_CHECK
        return "pass" if all(check.passed for check in self.checks) else "FAIL"

    @property
    def worst(self) -> Check:
        return max(self.checks, key=lambda check: check.severity)


def check_fixture(root: Path, stem: Path, suffixes: list[str]) -> Result:
    """Runs the check for one fixture. Whatever goes wrong in it is a failure of the fixture, not of the run."""
    name, checks = stem.relative_to(root).as_posix(), []
    try:
        fixture = Fixture(root, stem, suffixes)
        check = checker(fixture)
        if check is None:
            return Result(name, [], [])
        if missing := fixture.missing():
            return Result(name, [Check(f"{len(missing)} tensors are not there, {missing[0]} first", math.inf, 0.0)], [])
        checks += check(fixture)
    except Exception as error:
        return Result(name, [*checks, Check(f"{type(error).__name__}: {error}", math.inf, 0.0)], [])
    if not checks:
        checks.append(Check("nothing to compare", math.inf, 0.0))
    return Result(name, checks, fixture.unread())


def table(results: list[Result]) -> Iterator[str]:
    """The table, line by line."""
    lines = [("fixture", "quantity with the largest error", "error", "tolerance", "")]
    for result in results:
        if result.checks:
            worst = result.worst
            error = f"{worst.error:.2g}" if worst.tolerance else f"{worst.error:.0f}"
            tolerance = f"{worst.tolerance:.0e}" if worst.tolerance else "exact"
            lines.append((result.name, worst.quantity, error, tolerance, result.status))
        else:
            lines.append((result.name, "", "", "", NO_CHECK))
        lines += [(result.name, name, "", "", NO_CHECK) for name in result.unread]
    widths = [min(max(len(line[i]) for line in lines), 72) for i in range(5)]
    for line in lines:
        a, b, c, d, e = (" ".join(cell.split())[:72] for cell in line)
        yield f"{a:{widths[0]}}  {b:{widths[1]}}  {c:>{widths[2]}}  {d:>{widths[3]}}  {e}".rstrip()


def main(root: Path) -> int:
    """Checks all fixtures below `root` and prints the table; 1 if any fails or none is there."""
    if not root.is_dir():
        print(f"error: no folder {root}; say where the reference numbers are: make parity REFERENCE=DIR")
        return 1
    results = [check_fixture(root, stem, suffixes) for stem, suffixes in find_fixtures(root)]
    for line in table(results):
        print(line)
    for result in results:
        for check in result.checks:
            if not check.passed:
                limit = f"tolerance {check.tolerance:.0e}" if check.tolerance else "must be exact"
                print(f"FAIL {result.name}: {check.quantity}: {check.error:.3g}, {limit}")
    count = {status: sum(r.status == status for r in results) for status in ("pass", "FAIL", NO_CHECK)}
    comparisons = sum(len(result.checks) for result in results)
    print(f"\n{count['pass']} passed, {count['FAIL']} failed, {count[NO_CHECK]} without a check; {comparisons} comparisons")
    return 1 if count["FAIL"] or not count["pass"] else 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else REFERENCE))
