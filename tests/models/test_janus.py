"""Janus on a tiny checkpoint in the real format; `tests/parity` compares it with the official numbers."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.damage import check_every_flip_is_named
from tests.tiny import random_tokens, write_tiny_janus
from vapi_core.alignment.ar_grpo import ArGrpo, ArGrpoConfig
from vapi_core.alignment.data import AlignmentData
from vapi_core.alignment.reward import ReconstructionReward, RewardWeights
from vapi_core.alignment.va_pi import VaPi, VaPiConfig
from vapi_core.errors import FileError
from vapi_core.images import to_uint8
from vapi_core.models.captions import LongCaptionError
from vapi_core.models.checkpoints import load_model, save_model
from vapi_core.models.janus import (
    PromptConditions,
    export_janus,
    load_janus,
    load_janus_tokenizer,
    load_prompt_tokenizer,
)
from vapi_core.models.policy import Prompts
from vapi_core.sampling import SamplingConfig, generate, guide, sampling_uniforms
from vapi_core.training import OptimizationConfig, train

CAPTIONS = ["a photo of two red cats", "a dog", "a photo of a blue dog left of a cat"]
GUIDED = SamplingConfig(guidance_scale=5.0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_tiny_janus(tmp_path_factory.mktemp("janus"))


@pytest.fixture(scope="module")
def janus(checkpoint):
    return load_janus(checkpoint)


@pytest.fixture(scope="module")
def prompts(checkpoint):
    return load_prompt_tokenizer(checkpoint).encode(CAPTIONS)


@pytest.fixture(scope="module")
def whole(checkpoint):
    """transformers' own model."""
    from transformers import JanusForConditionalGeneration

    model = JanusForConditionalGeneration.from_pretrained(checkpoint).eval()
    model.generation_config.generation_kwargs = {"boi_token_id": 4}
    return model


def one(prompts: Prompts, i: int) -> Prompts:
    """One prompt without its padding."""
    return Prompts(
        prompts.tokens[i : i + 1, prompts.mask[i]], torch.ones(1, int(prompts.mask[i].sum()), dtype=torch.bool)
    )


def test_a_prompt_is_the_official_chat_template_around_the_caption(checkpoint):
    tokenizer = load_prompt_tokenizer(checkpoint)
    (ids,) = tokenizer.token_ids([" a dog\n"])
    assert tokenizer.tokenizer.decode(ids) == (
        "<｜begin▁of▁sentence｜><|User|>: a dog\n\n<|Assistant|>:<begin_of_image>"
    )
    assert ids[0] == tokenizer.bos_id and ids.count(tokenizer.bos_id) == 1


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


def test_a_prompt_that_is_too_long_is_named(checkpoint):
    tokenizer = load_prompt_tokenizer(checkpoint)
    lengths = tokenizer.check_length(CAPTIONS, 60)
    assert lengths == [len(ids) for ids in tokenizer.token_ids(CAPTIONS)]
    with pytest.raises(LongCaptionError, match="1 of 3 captions.*blue dog left"):
        tokenizer.check_length(CAPTIONS, max(lengths) - 1)


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


@torch.inference_mode()
def test_the_vq_model_decodes_like_transformers_and_encodes_with_the_normalisation_that_it_forgets(checkpoint, whole):
    tokenizer, tokens = load_janus_tokenizer(checkpoint), random_tokens(2, 16)
    images = tokenizer.decode(tokens)
    assert torch.allclose(images, whole.model.vqmodel.decode(tokens), atol=1e-5)
    codes = torch.nn.functional.normalize(tokenizer.embed(images), dim=1)  # [B, D, h, w]
    book = torch.nn.functional.normalize(whole.model.vqmodel.quantize.embedding.weight, dim=-1)
    nearest = torch.einsum("bdhw,kd->bhwk", codes, book).argmax(-1).flatten(1)
    assert torch.equal(tokenizer.encode(images), nearest)
    assert (whole.model.vqmodel.encode(images).image_tokens.view(2, -1) != nearest).any()


def test_a_saved_policy_loads_as_it_was(janus, prompts, tmp_path):
    save_model(tmp_path, "generator", janus)
    loaded = load_model(tmp_path, "generator")
    tokens = random_tokens(3, 16)
    assert loaded.config == janus.config and not loaded.training
    with torch.inference_mode():
        assert torch.equal(loaded(prompts, tokens[:, :-1]), janus(prompts, tokens[:, :-1]))


def test_a_prompt_tokenizer_is_saved_beside_a_policy(checkpoint, tmp_path):
    load_prompt_tokenizer(checkpoint).save(tmp_path)
    again, first = load_prompt_tokenizer(tmp_path), load_prompt_tokenizer(checkpoint)
    assert again.token_ids(CAPTIONS) == first.token_ids(CAPTIONS) and again.pad_id == first.pad_id


def write_official(checkpoint, directory, whole):
    """The tiny checkpoint in the official format, sharded, with official names for what makes images."""
    names = {
        "generation_embeddings.": "gen_embed.",
        "generation_head.proj_out.": "gen_head.output_mlp_projector.",
        "generation_head.vision_head.": "gen_head.vision_head.",
        "generation_aligner.fc1.": "gen_aligner.layers.0.",
        "generation_aligner.hidden_layers.0.": "gen_aligner.layers.2.",
        "language_model.": "language_model.model.",
        "vision_model.": "vision_model.vision_tower.",
    }
    shards: list[dict] = [{}, {}]
    for i, (name, tensor) in enumerate(whole.model.state_dict().items()):
        old = next((old for old in names if name.startswith(old)), "")
        shards[i % 2][name.replace(old, names.get(old, ""), 1)] = tensor.clone().half()
    for i, shard in enumerate(shards):
        torch.save(shard, directory / f"pytorch_model-{i + 1:05}-of-00002.bin")
    text = json.loads((checkpoint / "config.json").read_text())["text_config"]
    kept = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    description = {
        "model_type": "multi_modality",
        "language_config": {"model_type": "llama", "torch_dtype": "bfloat16"} | {key: text[key] for key in kept},
        "vision_config": {"cls": "CLIPVisionTower", "params": {"image_size": 64}},
    }
    (directory / "config.json").write_text(json.dumps(description))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).write_text((checkpoint / name).read_text())
    return directory


def test_an_official_checkpoint_is_the_same_policy(checkpoint, whole, janus, prompts, tmp_path):
    official = load_janus(write_official(checkpoint, tmp_path, whole))
    assert (official.config.grid, official.config.codebook_size) == (4, 24)
    tokens = random_tokens(3, 16)
    with torch.inference_mode():
        assert torch.allclose(official(prompts, tokens[:, :-1]), janus(prompts, tokens[:, :-1]), atol=0.02)  # half


def test_an_exported_policy_is_a_whole_checkpoint_with_its_weights(checkpoint, prompts, tmp_path):
    from transformers import JanusForConditionalGeneration

    policy = load_janus(checkpoint)
    with torch.no_grad():
        policy.generation_head.vision_head.bias.add_(1.0)
    export_janus(policy, checkpoint, tmp_path)
    again = load_janus(tmp_path)
    assert all(
        torch.equal(a, b) for a, b in zip(policy.state_dict().values(), again.state_dict().values(), strict=True)
    )
    assert load_prompt_tokenizer(tmp_path).token_ids(CAPTIONS) == load_prompt_tokenizer(checkpoint).token_ids(CAPTIONS)
    JanusForConditionalGeneration.from_pretrained(tmp_path)


def align(checkpoint, objective_of, steps: int, rate: float):
    """Trains a fresh policy on four images that some of its tokens decode to; returns it and the metrics of each step."""
    policy, tokenizer = load_janus(checkpoint), load_janus_tokenizer(checkpoint)
    text, tokens = load_prompt_tokenizer(checkpoint), random_tokens(4, 16)
    with torch.no_grad():
        images = to_uint8(tokenizer.decode(tokens))
    conditions = PromptConditions(text.token_ids([*CAPTIONS, "two cats"]), text.pad_id)
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


def test_what_is_no_janus_is_refused_by_name(checkpoint, tmp_path):
    with pytest.raises(FileError, match="no text tokenizer"):
        load_janus(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(FileError, match="'llama', not a Janus"):
        load_janus_tokenizer(tmp_path)


def test_a_checkpoint_that_lacks_weights_is_refused_and_not_filled_with_random_ones(checkpoint, tmp_path):
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.generation_head.vision_head.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(FileError, match="generation_head.vision_head.weight"):
        load_janus(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(FileError, match="no Janus can be loaded"):
        load_janus_tokenizer(tmp_path)


def test_another_language_models_tokenizer_is_refused(checkpoint, tmp_path):
    content = json.loads((checkpoint / "tokenizer.json").read_text().replace("<begin_of_image>", "<begin_of_sound>"))
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "tokenizer_config.json").write_text(
        (checkpoint / "tokenizer_config.json").read_text().replace("<begin_of_image>", "<begin_of_sound>")
    )
    with pytest.raises(FileError, match="<begin_of_image>"):
        load_prompt_tokenizer(tmp_path)


def test_a_kept_text_tokenizer_whose_bytes_flip_is_named(checkpoint, tmp_path):
    kept = load_prompt_tokenizer(checkpoint)
    kept.save(tmp_path)
    assert load_prompt_tokenizer(tmp_path).token_ids(["a red cat"]) == kept.token_ids(["a red cat"])
    for path in (tmp_path / "tokenizer.json", tmp_path / "tokenizer_config.json", tmp_path / "hashes.json"):
        check_every_flip_is_named(path, lambda: load_prompt_tokenizer(tmp_path), flips=10)


def test_a_configuration_that_is_nested_too_deeply_is_no_checkpoint(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path, dirs_exist_ok=True)
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(FileError, match="no checkpoint here"):
        load_janus(tmp_path)
