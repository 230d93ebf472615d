"""Checkpoints of Janus in both formats."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import JANUS_CAPTIONS, random_tokens
from vapi_core.errors import FileError
from vapi_core.models.janus.checkpoints import export_janus, load_janus, load_janus_tokenizer
from vapi_core.models.janus.prompts import load_prompt_tokenizer


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
    assert load_prompt_tokenizer(tmp_path).token_ids(JANUS_CAPTIONS) == load_prompt_tokenizer(checkpoint).token_ids(
        JANUS_CAPTIONS
    )
    JanusForConditionalGeneration.from_pretrained(tmp_path)


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
