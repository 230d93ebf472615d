"""What a text-to-image profile needs beside the files of `smoke_assets`: images with captions, prompts, and the large
networks around the generator, random, of their real size, in the layout of the hub's cache.

Weights from the hub go to HF_HUB_CACHE, which must name a folder of the rehearsal: the cache of real files is left
alone. Tokenizers know few words, and letters; FLAN-T5-XL has its encoder alone, of which nothing more is read.
"""

import io
import json
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image

from pipelines.config.assets import CLIP, DETECTOR, ENCODERS
from pipelines.config.params import Params
from pipelines.estimates.models import JANUS_FFN_SHARE, JANUS_VOCABULARY
from tests.tiny import write_janus, write_t5
from tests.tiny_vision import save_clip, save_mask2former
from vapi_core.errors import VapiError
from vapi_core.randomness import stream

CAPTIONS = ("a photo of two red cats", "a dog", "a blue dog left of a cat", "two cats")
PROMPTS: tuple[dict[str, Any], ...] = (
    {"tag": "single_object", "include": [{"class": "dog", "count": 1}], "prompt": "a photo of a dog"},
    {"tag": "counting", "include": [{"class": "cat", "count": 2}], "prompt": "a photo of two cats"},
    {"tag": "colors", "include": [{"class": "cat", "count": 1, "color": "red"}], "prompt": "a photo of a red cat"},
)
FLAN_T5_XL = {"d_model": 2048, "d_kv": 64, "d_ff": 5120, "num_layers": 24, "num_heads": 32, "vocab_size": 32128}
# transformers' defaults have Janus-Pro-1B's SigLIP and VQ-16, and Mask2Former's sizes; these are what differs
SWIN_SMALL = {
    "image_size": 224,
    "embed_dim": 96,
    "depths": [2, 2, 18, 2],
    "num_heads": [3, 6, 12, 24],
    "window_size": 7,
}

MASK2FORMER: dict[str, Any] = {}
JANUS_PARTS: dict[str, dict[str, Any]] = {"vision": {}, "vq": {}}
CLIP_MODEL: dict[str, Any] = open_clip.get_model_config("ViT-L-14-quickgelu")


def hub_folder(repository: str) -> Path:
    """Where the hub's cache keeps a repository, made anew.

    Raises:
        VapiError: HF_HUB_CACHE is not set: random weights do not go where real ones are.
    """
    if "HF_HUB_CACHE" not in os.environ:
        raise VapiError(
            "HF_HUB_CACHE is not set: random weights go into a cache of their own. "
            "Run `export HF_HUB_CACHE=$PWD/assets/hub`, for this command and for the rehearsal."
        )
    folder = Path(os.environ["HF_HUB_CACHE"]) / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs/main").write_text("rehearsal")
    (folder / "snapshots").mkdir(exist_ok=True)
    return folder / "snapshots/rehearsal"


@contextmanager
def made_in(dtype: torch.dtype) -> Iterator[None]:
    """New networks are of this type; bfloat16 takes half the memory and disk."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def write_captioned_images(folder: Path, side: int, count: int, packed: bool) -> None:
    """Color gradients as JPEG files with a caption each; packed: in one tar, as img2dataset writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, bytes] = {}
    for number in range(count):
        draws = stream(0, "captioned image", number)
        height, width = draws.integers(side * 5 // 4, side * 2, 2)
        picture = Image.fromarray(draws.integers(0, 256, (2, 2, 3)).astype(np.uint8)).resize((width, height))
        picture.save(content := io.BytesIO(), "JPEG")
        files[f"{number:09d}.jpg"] = content.getvalue()
        files[f"{number:09d}.txt"] = CAPTIONS[number % len(CAPTIONS)].encode()
    if packed:
        with tarfile.open(folder / "00000.tar", "w") as tar:
            for name, content_of_file in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content_of_file)
                tar.addfile(member, io.BytesIO(content_of_file))
    else:
        for name, content_of_file in files.items():
            (folder / name).write_bytes(content_of_file)


def write_prompts(path: Path) -> None:
    """A few of GenEval's kinds of prompts, in its format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(prompt) + "\n" for prompt in PROMPTS))


def write_text_encoder() -> None:
    from transformers import T5EncoderModel

    with made_in(torch.bfloat16):
        write_t5(hub_folder(ENCODERS["flan-t5-xl"]), T5EncoderModel, FLAN_T5_XL)


def write_full_janus(params: Params) -> None:
    """Janus-Pro-1B, understanding and generation, with the layers of `params`."""
    g = params.generator
    text = {
        "hidden_size": g.dim,
        "intermediate_size": int(JANUS_FFN_SHARE * g.dim),
        "num_hidden_layers": g.layers,
        "num_attention_heads": g.heads,
        "num_key_value_heads": g.kv_heads or g.heads,
        "vocab_size": JANUS_VOCABULARY,
    }
    with made_in(torch.bfloat16):
        write_janus(hub_folder(ENCODERS["janus"]), {"text": text} | JANUS_PARTS)


def write_judges() -> None:
    """GenEval's: Mask2Former with Swin-S, and CLIP ViT-L/14."""
    save_mask2former(hub_folder(DETECTOR), SWIN_SMALL, MASK2FORMER)
    save_clip(hub_folder(CLIP[0]), CLIP_MODEL)
