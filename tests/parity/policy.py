"""Checks of VA-π: noise, advantages, log-probabilities, policy loss and gradients, the update, the reward."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.parity.fixtures import Check, Fixture, close, close_mixed, exact
from tests.parity.generator import load_generator
from tests.parity.tokenizer import load_tokenizer
from vapi_core.alignment.noise import corrupt_prefix
from vapi_core.alignment.objective import clipped_policy_loss, group_advantages, kl_estimate
from vapi_core.alignment.reward import ReconstructionReward, RewardWeights
from vapi_core.models.llamagen.generator import Generator
from vapi_core.models.logits import next_token_loss, token_log_probabilities
from vapi_core.sampling.sampler import filtered_probabilities
from vapi_core.training.loop import MicroBatch, OptimizationConfig, train


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
        loss = loss + case["aux_ce_weight"] * next_token_loss(logits, self.fixture["in.gt_tokens"])
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
                    loss = row.mean() + cases[source]["aux_ce_weight"] * next_token_loss(row_logits, row_tokens)
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

    def objective(batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
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
        reward = ReconstructionReward(tokenizer, ours, StoredDistance(fixture["in.fake_lpips"]))
        rewards, terms = reward(rollouts, images)
        yield close(f"{label} term", terms[term], fixture[f"out.rec_{label}"], 1e-5)
        yield close("embedding term", terms["embedding"], fixture["out.embedcos"], 1e-5)
        yield close(f"reward with {label}", rewards, fixture[f"out.rewards_{label}"], 1e-5)
