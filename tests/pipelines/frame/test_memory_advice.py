"""A stage that runs out of memory says what was asked for, and which parameters lower the need."""

import re

import numpy as np
import pytest
import torch

from pipelines.config.loading import check_params
from pipelines.config.profiles import profile_names, read_profile
from pipelines.frame.memory_advice import asked_for, memory_advice, memory_explained
from vapi_core.errors import VapiError

STAGES = [
    "subset",
    "classifier@reward",
    "tokenizer",
    "tokenize",
    "generator",
    "references",
    "sample-control@base",
    "sample@va-pi",
    "score@va-pi",
    "score-control@base",
    "report",
    "table@noise",
]


def with_params(**values):
    """The default profile with dotted keys (__ for a dot) changed."""
    content = read_profile("mnist")
    for key, value in values.items():
        section, name = key.split("__")
        content[section][name] = value
    return check_params(content)


def test_an_alignment_is_told_what_it_asks_for_and_what_to_lower():
    advice = memory_advice(with_params(), "align@va-pi")
    assert "align.micro_batch_size: 4 (now 8)" in advice
    assert "align.log_kl_every: 0 (now 10)" in advice
    assert "launch.activation_checkpointing: true (now false)" in advice
    assert "launch.strategy: fsdp, on several GPUs (now ddp)" in advice
    same, other = advice.split("change the result:")
    assert "launch.dtype: bfloat16 (now float32)" in other and "align.group_size: 4 (now 8)" in other
    assert "sample" not in advice and "score" not in advice


def test_what_is_at_its_lowest_or_has_no_part_in_a_stage_is_not_named():
    lean = with_params(
        align__micro_batch_size=1,
        align__log_kl_every=0,
        launch__activation_checkpointing=True,
        launch__dtype="bfloat16",
        align__group_size=2,
    )
    assert "fsdp" in memory_advice(lean, "align@va-pi")
    assert memory_advice(lean, "align@tokenizer-post-training").startswith(
        "No parameter"
    )  # it has no rollouts, and trains no generator
    # the base is held for the regularizer, whatever is logged
    assert "log_kl" not in memory_advice(with_params(), "align@kl-0_1")
    assert "log_kl" not in memory_advice(with_params(), "align@cross-entropy")
    assert "fsdp" not in memory_advice(with_params(), "align@ar-grpo")  # it needs whole weights


def test_a_batch_that_is_not_set_is_told_as_what_it_comes_to():
    params = with_params(align__micro_batch_size=None, sample__batch_size=None, launch__processes=2)
    assert "align.micro_batch_size: 4 (now null, which is 8)" in memory_advice(params, "align@va-pi")
    assert "sample.batch_size: 1, or as many as fit (now null)" in memory_advice(params, "sample@va-pi")
    assert "tokenizer.training.micro_batch_size: 16 (now null, which is 32)" in memory_advice(params, "tokenizer")


@pytest.mark.parametrize("profile", profile_names())
def test_every_parameter_that_is_named_stands_in_the_params_file(profile):
    content = read_profile(profile)
    params = check_params(content)
    for stage in [*STAGES, *(f"align@{variant}" for variant in params.variants)]:
        for name in re.findall(r"[:,] ([a-z_0-9.]+): ", memory_advice(params, stage)):
            *sections, key = name.split(".")
            here = content
            for section in sections:
                here = here[section]
            assert key in here or key == "micro_batch_size", name


def test_a_parameter_that_a_variant_changes_is_named_there():
    content = read_profile("mnist")
    content["variants"]["va-pi"]["align"] = {"micro_batch_size": 16}
    advice = memory_advice(check_params(content), "align@va-pi")
    assert "variants.va-pi.align.micro_batch_size: 8 (now 16)" in advice and "align.group_size: 4 (now 8)" in advice


def test_what_a_micro_batch_is_lowered_to_divides_the_batch():
    params = with_params(align__batch_size=36, align__micro_batch_size=9)  # 36 by 4 is what the replication takes
    assert "align.micro_batch_size: 3 (now 9)" in memory_advice(params, "align@va-pi")


@pytest.mark.parametrize(
    ("allocate", "asked"),
    [
        (lambda: torch.empty(2**50), "4.19e+06 GiB more were asked for on the CPU"),
        (lambda: np.empty((2**50, 4)), "Unable to allocate 32.0 PiB for an array with shape"),
        (lambda: [0] * 2**55, "a Python object did not fit"),
    ],
    ids=["torch", "numpy", "python"],
)
def test_what_cannot_be_allocated_ends_with_one_message(allocate, asked):
    with (
        pytest.raises(VapiError, match=rf"align@va-pi: out of memory \({re.escape(asked)}.*micro_batch_size: 4"),
        memory_explained(with_params(), "align@va-pi"),
    ):
        allocate()


def test_a_gpu_that_is_full_is_told_by_what_was_asked_for():
    error = torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8 GiB"
    )
    assert asked_for(error) == "2.00 GiB more were asked for on the GPU"


def test_an_error_of_another_kind_stays_what_it_is():
    with pytest.raises(RuntimeError, match="size"), memory_explained(with_params(), "tokenizer"):
        torch.zeros(2) @ torch.zeros(3)
