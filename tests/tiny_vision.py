"""The smallest Mask2Former and CLIP of the real formats, with random weights, saved as their libraries save them."""

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

from vapi_core.randomness import seed_torch
from vapi_core.scoring.geneval.detectors import COCO_CLASSES

COCO_OWN_NAMES = {"computer mouse": "mouse", "tv remote": "remote", "computer keyboard": "keyboard"}


TINY_BACKBONE = {"image_size": 64, "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "window_size": 4}
TINY_MASK2FORMER = {
    "feature_size": 32,
    "mask_feature_size": 32,
    "hidden_dim": 32,
    "encoder_feedforward_dim": 16,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_attention_heads": 2,
    "dim_feedforward": 16,
    "num_queries": 12,
}


def save_tiny_mask2former(folder: Path, labels: tuple[str, ...] = COCO_CLASSES, certainty: float = 40.0) -> Path:
    """The smallest Mask2Former; see `save_mask2former`."""
    return save_mask2former(folder, TINY_BACKBONE, TINY_MASK2FORMER, labels, certainty)


def save_mask2former(
    folder: Path,
    backbone: dict[str, Any],
    shape: dict[str, Any],
    labels: tuple[str, ...] = COCO_CLASSES,
    certainty: float = 40.0,
) -> Path:
    """A random Mask2Former with COCO's own names in its configuration.

    Args:
        backbone, shape: fields of the configurations of Swin and of Mask2Former.
        certainty: factor of the class logits. A fresh model's are nearly uniform; a factor makes it say something.
    """
    swin = SwinConfig(**backbone, out_features=["stage1", "stage2", "stage3", "stage4"])
    names = dict(enumerate(COCO_OWN_NAMES.get(name, name) for name in labels))
    config = Mask2FormerConfig(
        backbone_config=swin, **shape, id2label=names, label2id={name: i for i, name in names.items()}
    )
    seed_torch(0, "tiny-mask2former")
    model = Mask2FormerForUniversalSegmentation(config)
    with torch.no_grad():
        model.class_predictor.weight *= certainty
        model.class_predictor.bias.zero_()
    model.save_pretrained(folder)
    return folder


TINY_CLIP: dict[str, Any] = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def save_tiny_clip(folder: Path, seed: int = 0) -> Path:
    """The smallest CLIP; see `save_clip`."""
    return save_clip(folder, TINY_CLIP, seed)


def save_clip(folder: Path, shape: dict[str, Any], seed: int = 0) -> Path:
    """A random CLIP as an open_clip folder: `open_clip_config.json` and `open_clip_model.safetensors`."""
    folder.mkdir(parents=True, exist_ok=True)
    seed_torch(seed, "tiny-clip")
    model = open_clip.CLIP(**shape)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": shape, "preprocess_cfg": {}}))
    save_file({n: t.contiguous() for n, t in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return folder
