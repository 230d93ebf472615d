"""Fixtures of our own making, in the form of the official ones."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.tiny import random_tokens, tiny_generator
from vapi_core.models.llamagen.generator import rotary_table
from vapi_core.models.logits import next_token_loss


def write(root: Path, fixture: str, description: dict, tensors: dict[str, torch.Tensor]) -> Path:
    path = root / f"{fixture}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(description | {"tensors": {n: {"shape": list(t.shape)} for n, t in tensors.items()}}))
    save_file({n: t.contiguous() for n, t in tensors.items()}, path.with_suffix(".safetensors"))
    return path


def write_rotary(root: Path, fixture: str = "tables", error: float = 0.0) -> Path:
    return write(root, fixture, {}, {"out.freqs_grid3_hd12_cls2": rotary_table(3, 12, 2) + error})


def write_generator(root: Path, fixture: str) -> Path:
    """A class-to-image fixture of another name and size than any official one."""
    generator = tiny_generator(grid=3, codebook_size=19, multiple_of=256, kv_heads=2)
    tokens, class_ids = random_tokens(2, 9, 19), torch.tensor([4, 0])
    with torch.no_grad():
        logits = generator(class_ids, tokens[:, :-1])
        null = generator(torch.full_like(class_ids, 5), tokens[:, :-1])
    config = {"dim": 32, "n_layer": 2, "n_head": 4, "n_kv_head": 2, "vocab_size": 19, "block_size": 9, "num_classes": 5}
    outputs = {
        "out.tf_logits": logits,
        "out.tf_logits_null_class": null,
        "out.ce_loss": next_token_loss(logits, tokens),
        "out.train_mode_nodrop_loss": next_token_loss(logits, tokens),
    }
    weights = {f"weights.{n}": t for n, t in generator.state_dict().items()}
    return write(
        root, fixture, {"config": config}, {"in.tokens": tokens, "in.class_ids": class_ids} | outputs | weights
    )
