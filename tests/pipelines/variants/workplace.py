"""A folder in which everything before the alignment is done, with tiny models: images of 12 pixels, five classes."""

import argparse
from pathlib import Path

import numpy as np
import torch

from pipelines.config.params import Params
from pipelines.config.paths import CLASSIFIERS, GENERATOR, RUN_FILE, SUBSET, TOKENIZER, TOKENS
from pipelines.config.profiles import read_profile
from pipelines.frame.stage import Stage, UntrackedRun
from pipelines.stages import align, sample, score, tokenize
from tests.tiny import tiny_generator, tiny_tokenizer
from vapi_core.data.sources import ImageSource
from vapi_core.data.subset import plan_subset, write_subset
from vapi_core.files import write_json
from vapi_core.models.checkpoints import save_model

SIDE, CLASSES = 12, 5
ROOT = Path(__file__).parents[3]


def tiny_content() -> dict:
    """The default profile with one seed and few steps; its models are those of `fill`, whatever it says of them."""
    content = read_profile("mnist", ROOT)
    content["threads"] = 1
    content["subset"] |= {"image_size": SIDE}
    content["tokenizer"] |= {"encoder_multipliers": [1, 1, 1], "decoder_multipliers": [1, 1, 1]}
    content["align"] |= {"seeds": [0], "steps": 6, "batch_size": 4, "micro_batch_size": None, "warmup_steps": 0}
    content["align"] |= {"checkpoint_every": 2, "keep_every": 2, "group_size": 2}
    content["align"]["reward"]["perceptual"] = 0.0  # no classifier is needed
    kept = ("va-pi", "cross-entropy", "tokenizer-post-training")
    content["variants"], content["tables"] = {name: content["variants"][name] for name in kept}, []
    for variant in content["variants"].values():
        variant["align"].pop("keep_every", None)  # the shared one shall hold
    content["sample"] |= {"count": 11, "batch_size": 4, "guidance_scales": [1.0, 2.0]}
    content["score"]["is_splits"] = 2
    content["controls"]["base"]["temperatures"] = [1.0]
    return content


def image(number: int) -> np.ndarray:
    return np.full((SIDE, SIDE, 3), 20 * number, np.uint8)


def fill(params: Params) -> None:
    """Puts ten images, a tokenizer, their tokens and a generator into the current folder."""
    ids = tuple(map(str, range(10)))
    source = ImageSource("tiny", SIDE, tuple("abcde"), ids, np.arange(10) % CLASSES, image)
    write_subset(source, plan_subset(source.labels, source.classes, {"train": 10}, 0), SUBSET)
    save_model(TOKENIZER, "tokenizer", tiny_tokenizer(levels=3))
    save_model(GENERATOR, "generator", tiny_generator())
    tokenize.work(stage_of(tokenize, params), argparse.Namespace())
    for folder in (SUBSET, TOKENIZER, TOKENS, GENERATOR, CLASSIFIERS / "reward"):
        write_json(folder / RUN_FILE, {"key": folder.name, "stage": folder.name, "experiment": "tiny"})


def stage_of(module, params: Params, **arguments) -> Stage:
    """A stage as its work gets it, without tracking."""
    plan = module.plan(params, argparse.Namespace(**arguments))
    return Stage(plan, params, torch.device("cpu"), UntrackedRun(), "key")


def run(module, params: Params, variant: str) -> Stage:
    """The work of a variant's stage (of `align`, `sample` or `score`), without tracking."""
    assert module in (align, sample, score)
    stage = stage_of(module, params, variant=variant)
    module.work(stage, argparse.Namespace(variant=variant))
    return stage
