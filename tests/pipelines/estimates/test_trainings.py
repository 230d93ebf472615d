"""What is counted without any data is what stages count of themselves when they run."""

from pathlib import Path

import pytest

from pipelines.config.loading import check_params
from pipelines.config.params import Params
from pipelines.config.profiles import read_profile
from pipelines.config.variant import find_variant
from pipelines.estimates.drawing import CountedParams
from pipelines.estimates.trainings import COUNTED_LOGITS, alignment_work, alike, training
from pipelines.estimates.work import operation
from vapi_core.files import read_json
from vapi_core.training.loop import OptimizationConfig

ROOT = Path(__file__).parents[3]


def profile(name: str) -> Params:
    return check_params(read_profile(name, ROOT))


def flops_per_image(params: Params, name: str, images: int) -> float:
    alignment = find_variant(params, name).alignment
    assert alignment is not None
    return alignment_work(CountedParams(params), alike(alignment), images).flops / images


@pytest.mark.parametrize("name", ["kl-0_1", "cross-entropy", "ste", "tokenizer-post-training", "ar-grpo"])
def test_flops_of_a_method_are_those_that_its_stage_counted(name):
    counted = read_json(ROOT / f"reports/stages/align@{name}.json")["flops_per_image"]
    assert flops_per_image(profile("mnist"), name, 2) == pytest.approx(counted, rel=0.01)


def test_a_method_at_full_size_needs_no_weights_of_lpips_or_clip():
    params = profile("llamagen-xl-c2i")
    decoded = 8 * 0.57e12  # FLOPs of eight rollouts through VQ-16's decoder
    assert flops_per_image(params, "va-pi", 1) > decoded
    assert params.subset.image_size**2 / 256 * params.tokenizer.codebook_size > COUNTED_LOGITS / 2  # counted by ones


def test_what_changes_no_work_is_counted_once():
    params = profile("mnist")
    variants = [find_variant(params, name).alignment for name in ("noise-0_25", "noise-0_75", "ce-0_01", "ce-1_0")]
    assert len({alike(a) for a in variants if a is not None}) == 1


def test_a_training_is_its_micro_batches_and_one_optimizer_step_for_each_step():
    config = OptimizationConfig(learning_rate=1e-3, steps=10, batch_size=8, micro_batch_size=2)
    work = training(lambda size: operation(100 * size, 0), config, trained=0)
    assert work.flops == 10 * 8 * 100
    assert work.count == 10 * (4 + 2)
