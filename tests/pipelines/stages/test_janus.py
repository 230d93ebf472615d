"""Janus through the stages: imported, aligned, sampled by prompts; a tiny one under the profile `janus-pro-1b`."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.config.loading import check_params
from pipelines.config.paths import ALIGNED, CAPTIONS, CLASSIFIERS, GENERATOR, SAMPLES
from pipelines.config.profiles import read_profile
from pipelines.frame.stage import Stage, UntrackedRun
from pipelines.stages import align, generator, sample, subset, tokenize, tokenizer
from tests.tiny import write_tiny_janus
from vapi_core.files import write_json
from vapi_core.models.captions.encoders import LongCaptionError
from vapi_core.models.checkpoints import load_model
from vapi_core.models.janus.policy import Janus

ROOT = Path(__file__).parents[3]
CAPTIONS_OF_IMAGES = ["a photo of two red cats", "a dog", "a blue dog left of a cat", "two cats"]


def tiny(path) -> dict:
    """The profile with a tiny checkpoint and a folder of ten images, otherwise as it is."""
    content = read_profile("janus-pro-1b", ROOT)
    content["subset"] |= {"source": "captioned-folder", "path": str(path / "images"), "dataset": None}
    content["subset"] |= {
        "image_size": 16,
        "splits": {"train": 6, "heldout": 4},
        "prompts": str(path / "prompts.jsonl"),
    }
    content["captions"]["checkpoint"] = content["tokenizer"]["checkpoint"] = str(path / "checkpoint")
    content["generator"] |= {"checkpoint": str(path / "checkpoint"), "dim": 32, "layers": 2, "heads": 4}
    content["tokenizer"] |= {"codebook_size": 24, "codebook_dim": 4, "base_channels": 32, "res_blocks": 1}
    content["tokenizer"] |= {"encoder_multipliers": [1, 1, 1], "decoder_multipliers": [1, 1, 1], "z_channels": 32}
    content["launch"] |= {"processes": 1, "dtype": "float32", "strategy": "ddp", "compile": False}
    content["align"] |= {
        "steps": 2,
        "batch_size": 4,
        "micro_batch_size": 2,
        "group_size": 4,
        "seeds": [0],
        "log_kl_every": 0,
    }
    content["align"]["reward"]["perceptual"] = 0.0
    kept = ("va-pi", "cross-entropy", "noise-0_0", "ce-1_0", "only-prior")
    content["variants"] = {name: content["variants"][name] for name in kept}
    content["align"]["learning_rate"] = 1e-3
    content["sample"] |= {"count": 2, "batch_size": 3, "save_size": None}
    return content


def fill_workplace(path):
    """Puts a tiny Janus, images with captions, and two prompts into a folder."""
    write_tiny_janus(path / "checkpoint")
    (path / "images").mkdir()
    draws = np.random.default_rng(0)
    for i in range(10):
        Image.fromarray(draws.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(path / f"images/{i}.png")
        (path / f"images/{i}.txt").write_text(CAPTIONS_OF_IMAGES[i % 4])
    prompts = [{"tag": "single_object", "include": [{"class": "dog", "count": 1}], "prompt": "a photo of a dog"}]
    prompts += [{"tag": "counting", "include": [{"class": "cat", "count": 2}], "prompt": "a photo of two cats"}]
    (path / "prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    return path


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    return fill_workplace(tmp_path_factory.mktemp("janus"))


def run(module, params, **arguments) -> Stage:
    """The work of one stage, without tracking."""
    given = argparse.Namespace(**arguments)
    plan = module.plan(params, given)
    stage = Stage(plan, params, torch.device("cpu"), UntrackedRun(), "key")
    module.work(stage, given)
    if plan.output is not None:
        write_json(plan.output / "run.json", {"key": "key"})
    return stage


def test_the_stages_align_and_sample_a_janus(workplace, monkeypatch):
    params = check_params(tiny(workplace))
    monkeypatch.chdir(workplace)
    for module in (subset, tokenizer, tokenize, generator):
        stage = run(module, params)
    assert stage.metrics["parameters"] > 10_000 and stage.metrics["cross_entropy_heldout"] > 0
    assert (CAPTIONS / "tokenizer.json").is_file() and not (CAPTIONS / "features.npy").exists()
    base = load_model(GENERATOR, "generator")
    assert isinstance(base, Janus)
    (CLASSIFIERS / "reward").mkdir(parents=True)
    write_json(CLASSIFIERS / "reward" / "run.json", {"key": "key"})
    run(align, params, variant="va-pi")
    policy = load_model(ALIGNED / "va-pi" / "0", "generator")
    assert any((a != b).any() for a, b in zip(policy.parameters(), base.parameters(), strict=True))
    for variant in ("base", "va-pi"):
        run(sample, params, variant=variant)
    (images, others) = (
        np.load(SAMPLES / "experiment" / variant / "t1.0-g5.0-0" / "images.npy") for variant in ("base", "va-pi")
    )
    assert images.shape == others.shape == (4, 16, 16, 3) and (images != others).any()
    assert len(np.unique(images.reshape(4, -1), axis=0)) == 4


def test_a_caption_that_is_too_long_stops_before_anything_is_trained(workplace, monkeypatch):
    content = tiny(workplace)
    content["captions"]["tokens"] = 12
    params = check_params(content)
    monkeypatch.chdir(workplace)
    with pytest.raises(LongCaptionError, match="have more than 12 tokens"):
        tokenize.encode_texts(CAPTIONS_OF_IMAGES, [], Stage(None, params, torch.device("cpu"), UntrackedRun(), "key"))
