"""Janus on a tiny checkpoint in the real format; `tests/parity` compares it with the official numbers."""

import numpy as np
import torch

from tests.tiny import JANUS_CAPTIONS, random_tokens
from vapi_core.alignment.ar_grpo import ArGrpo, ArGrpoConfig
from vapi_core.alignment.reward import ReconstructionReward, RewardWeights
from vapi_core.alignment.va_pi import VaPi, VaPiConfig
from vapi_core.data.batches import AlignmentData
from vapi_core.data.images import to_uint8
from vapi_core.models.checkpoints import load_model, save_model
from vapi_core.models.janus.checkpoints import load_janus, load_janus_tokenizer
from vapi_core.models.janus.prompts import PromptConditions, load_prompt_tokenizer
from vapi_core.models.policy import Prompts
from vapi_core.sampling.sampler import SamplingConfig, generate, guide, sampling_uniforms
from vapi_core.training.loop import OptimizationConfig, train

GUIDED = SamplingConfig(guidance_scale=5.0)


def one(prompts: Prompts, i: int) -> Prompts:
    """One prompt without its padding."""
    return Prompts(
        prompts.tokens[i : i + 1, prompts.mask[i]], torch.ones(1, int(prompts.mask[i].sum()), dtype=torch.bool)
    )


@torch.inference_mode()
def test_row_t_of_the_logits_predicts_token_t(janus, prompts):
    """It knows tokens 0..t-1 and not token t: the authors' trainer reads it one position later."""
    tokens = random_tokens(3, 16)
    before = janus(prompts, tokens[:, :-1])
    assert before.shape == (3, 16, 24) and before.dtype == torch.float32
    changed = tokens.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 24
    moved = (janus(prompts, changed[:, :-1]) - before).abs().amax((0, 2))
    assert not moved[:8].any() and (moved[8:] > 1e-4).all()


@torch.inference_mode()
def test_the_padding_of_a_batch_changes_nothing(janus, prompts):
    tokens = random_tokens(3, 16)
    together = janus(prompts, tokens[:, :-1])
    for i in range(3):
        alone = janus(one(prompts, i), tokens[i : i + 1, :-1])
        assert torch.allclose(together[i], alone[0], atol=1e-5)


@torch.inference_mode()
def test_the_cache_gives_the_logits_of_the_whole_sequence(janus, prompts):
    tokens, cache = random_tokens(3, 16), janus.new_cache(3)
    for _ in range(2):  # a cache serves batch after batch
        steps = [janus.prefill(prompts, cache)]
        steps += [janus.decode_step(tokens[:, t - 1], t, cache) for t in range(1, 16)]
        assert torch.allclose(torch.stack(steps, 1), janus(prompts, tokens[:, :-1]), atol=1e-5)


def test_a_null_prompt_keeps_its_two_ends_and_the_place_of_its_padding(janus, prompts):
    both = janus.append_null(prompts)
    assert len(both) == 6 and torch.equal(both.mask[3:], prompts.mask) and torch.equal(both.tokens[:3], prompts.tokens)
    for row, mask, own in zip(both.tokens[3:], prompts.mask, prompts.tokens, strict=True):
        null, ids = row[mask].tolist(), own[mask].tolist()
        assert (null[0], null[-1]) == (ids[0], ids[-1]) and set(null[1:-1]) == {janus.config.pad_id}


@torch.inference_mode()
def test_in_bfloat16_positions_stay_exact(checkpoint, janus, prompts):
    low = load_janus(checkpoint).to(torch.bfloat16)
    rotary = janus.language_model.rotary_emb
    assert (
        torch.equal(low.language_model.rotary_emb.inv_freq, rotary.inv_freq) and rotary.inv_freq.dtype == torch.float32
    )
    tokens = random_tokens(3, 16)
    logits = low(prompts, tokens[:, :-1])
    assert logits.dtype == torch.float32
    assert (logits - janus(prompts, tokens[:, :-1])).abs().mean() < 0.03
    assert generate(low, prompts, sampling_uniforms(0, range(3), 16), GUIDED).shape == (3, 16)


def test_recomputing_activations_changes_no_gradient(checkpoint, prompts):
    gradients = []
    for recompute in (False, True):
        policy = load_janus(checkpoint)
        policy.activation_checkpointing = recompute
        policy(prompts, random_tokens(3, 15)).square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None]))
    assert torch.equal(*gradients) and gradients[0].norm() > 0


def test_greedy_generation_is_that_of_transformers(janus, whole, prompts):
    """Its generate() takes prompts of one length, and guidance as the official code has it."""
    prompt = one(prompts, 0)
    uniforms = torch.zeros(1, 16)
    ours = generate(janus, prompt, uniforms, SamplingConfig(temperature=0.0, guidance_scale=5.0))
    theirs = whole.generate(
        prompt.tokens,
        attention_mask=prompt.mask.long(),
        generation_mode="image",
        guidance_scale=5.0,
        do_sample=False,
        max_length=64,
    )
    assert len(ours.unique()) > 2 and torch.equal(ours, theirs)


def test_an_image_is_the_same_in_whatever_batch_it_is_drawn(janus, prompts):
    uniforms = sampling_uniforms(0, range(3), 16)
    together = generate(janus, prompts, uniforms, GUIDED)
    alone = torch.cat([generate(janus, one(prompts, i), uniforms[i : i + 1], GUIDED) for i in range(3)])
    assert torch.equal(together, alone) and len(together.unique(dim=0)) == 3


@torch.inference_mode()
def test_guidance_pairs_each_prompt_with_its_own_image_tokens(janus, prompts):
    tokens = random_tokens(3, 16)
    together = guide(janus(janus.append_null(prompts), tokens.repeat(2, 1)[:, :-1]), 5.0, 3)
    for i in range(3):
        alone = guide(janus(janus.append_null(one(prompts, i)), tokens[[i, i], :-1]), 5.0, 1)
        assert torch.allclose(together[i], alone[0], atol=1e-4)


def test_a_saved_policy_loads_as_it_was(janus, prompts, tmp_path):
    save_model(tmp_path, "generator", janus)
    loaded = load_model(tmp_path, "generator")
    tokens = random_tokens(3, 16)
    assert loaded.config == janus.config and not loaded.training
    with torch.inference_mode():
        assert torch.equal(loaded(prompts, tokens[:, :-1]), janus(prompts, tokens[:, :-1]))


def align(checkpoint, objective_of, steps: int, rate: float):
    """Trains a fresh policy on four images that its tokens decode to; returns it and the metrics of each step."""
    policy, tokenizer = load_janus(checkpoint), load_janus_tokenizer(checkpoint)
    text, tokens = load_prompt_tokenizer(checkpoint), random_tokens(4, 16)
    with torch.no_grad():
        images = to_uint8(tokenizer.decode(tokens))
    conditions = PromptConditions(text.token_ids([*JANUS_CAPTIONS, "two cats"]), text.pad_id)
    data = AlignmentData(tokens.numpy().astype(np.uint16), conditions, images, torch.device("cpu"))
    rows: list[dict] = []
    config = OptimizationConfig(learning_rate=rate, steps=steps, batch_size=4, micro_batch_size=2)
    objective = objective_of(policy, tokenizer, data)
    train(policy, objective, config, count=4, seed=0, log=lambda step, row: rows.append(row))
    return policy, rows


def test_va_pi_aligns_janus(checkpoint, janus):
    """With the paper's noise for Janus, and its prior loss, which falls."""

    def objective(policy, tokenizer, data):
        config = VaPiConfig(group_size=4, noise_ratio=0.95, reward=RewardWeights(perceptual=0.0))
        return VaPi(policy, ReconstructionReward(tokenizer, config.reward), data, config, seed=0)

    policy, rows = align(checkpoint, objective, steps=12, rate=3e-3)
    assert all(row["ratio"] == 1.0 and np.isfinite(row["loss"]) for row in rows)
    assert np.mean([row["ce"] for row in rows[-3:]]) < np.mean([row["ce"] for row in rows[:3]]) - 0.1
    moved = {
        n.split(".")[0]
        for (n, a), b in zip(policy.named_parameters(), janus.parameters(), strict=True)
        if (a != b).any()
    }
    assert moved == {"language_model", "generation_embeddings", "generation_aligner", "generation_head"}
    assert all(p.grad is None for p in janus.parameters())


def test_ar_grpo_aligns_janus_with_guided_rollouts(checkpoint):
    class Bright:
        name = "bright"

        def __call__(self, images, items):
            return images.mean((1, 2, 3))

    def objective(policy, tokenizer, data):
        config = ArGrpoConfig(group_size=4, guidance_scale=5.0, kl_weight=0.0)
        return ArGrpo(policy, tokenizer, [(1.0, Bright())], data, config, seed=0)

    _, rows = align(checkpoint, objective, steps=2, rate=1e-3)
    assert all(row["ratio"] == 1.0 and row["gradient_norm"] > 0 for row in rows)
