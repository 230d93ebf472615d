"""The ImageNet profiles are LlamaGen's official models with the paper's hyper-parameters."""

import json
from pathlib import Path

import pytest
import torch
from pipelines.config.params import grid_side, load_params

from tests.reference import REFERENCE, needs_reference
from vapi_core.models.llamagen.generator import Generator
from vapi_core.models.llamagen.tokenizer import Tokenizer

SIZES = {"llamagen-xl-c2i": ("GPT-XL", 2.0), "llamagen-xxl-c2i": ("GPT-XXL", 1.75)}


def profile(name):
    return load_params(Path(f"profiles/{name}.yaml"))


def shapes(name):
    layout = json.loads((REFERENCE / f"checkpoint_layouts/{name}.json").read_text())["state_dict"]
    return {tensor: entry["shape"] for tensor, entry in layout.items()}


@needs_reference
@pytest.mark.parametrize("name", SIZES)
def test_the_models_of_a_profile_have_every_tensor_of_the_official_checkpoints(name):
    params = profile(name)
    with torch.device("meta"):
        generator = Generator(params.generator.config(grid_side(params), params.tokenizer.codebook_size, classes=1000))
        tokenizer = Tokenizer(params.tokenizer.config())
    for model, layout in ((generator, f"{SIZES[name][0]}_c2i_block576"), (tokenizer, "VQ-16")):
        assert {tensor: list(value.shape) for tensor, value in model.state_dict().items()} == shapes(layout)


@pytest.mark.parametrize("name", SIZES)
def test_the_hyper_parameters_are_those_of_table_7(name):
    params = profile(name)
    a = params.align
    assert (a.learning_rate, a.weight_decay, a.betas, a.gradient_norm) == (1e-6, 1e-4, (0.9, 0.999), 1.0)
    assert (a.steps, a.batch_size, params.subset.splits["train"]) == (100, 128, 12_800)
    assert (a.group_size, a.noise_ratio, a.regularizer, a.regularizer_weight) == (8, 0.0, "ce", 0.1)
    assert (a.clip_epsilon, a.advantage_clamp, a.reward_network) == (0.2, 5.0, "lpips")
    assert a.reward.model_dump() == {"mse": 1.0, "perceptual": 1.0, "l1": 0.0, "embedding": 0.0}
    assert params.launch.dtype == "bfloat16" and grid_side(params) == 24


@pytest.mark.parametrize("name", SIZES)
def test_the_protocol_is_that_of_table_2(name):
    params = profile(name)
    s = params.sample
    assert (s.count, s.save_size, s.classes, s.temperature, s.top_k, s.top_p) == (50_000, 256, "random", 1.0, 0, 1.0)
    assert s.guidance_scales == (1.0, SIZES[name][1])
    assert params.score.references == ("VIRTUAL_imagenet256_labeled",) and params.score.is_splits == 10
    assert params.score.extractors == ("inception-v3-compat",)
