"""Computed peaks of memory: right beside measured ones, and every full-size profile fits the GPU that it is for."""

import pytest
import torch
import yaml
from torch.profiler import ProfilerActivity, profile

from pipelines.config.loading import check_params
from pipelines.config.profiles import read_profile
from pipelines.config.variant import find_variant, overlay
from pipelines.estimates import peaks
from pipelines.estimates.live_bytes import LiveBytes
from pipelines.estimates.peaks import CUDA_RESERVE, align_peak, fullest, sample_peak
from pipelines.frame.memory_advice import memory_levers
from vapi_core.memory import CPU_PART_BYTES

GB = 10**9
FULL_SIZE = {  # methods of each profile, by their variants
    "llamagen-xl-c2i": ["va-pi", "kl-1_0", "cross-entropy", "ar-grpo"],
    "llamagen-xxl-c2i": ["va-pi", "kl-1_0", "cross-entropy", "ste", "tokenizer-post-training"],
    "llamagen-xl-t2i": ["va-pi", "cross-entropy", "ar-grpo"],
    "janus-pro-1b": ["cross-entropy"],  # va-pi: see docs/full-size.md
}


def params_of(name: str, **changes):
    return check_params(overlay(read_profile(name), changes))


def small(**changes):
    """The default profile, of which everything runs here."""
    return params_of("mnist", **changes)


def phases(params, variant: str, layers: int):
    alignment = find_variant(params, variant).alignment
    opened = peaks._open(params, alignment, layers, CPU_PART_BYTES, torch.float32)
    return peaks._step(*opened, params, alignment, torch.float32)


def measured(run) -> int:
    """Most bytes that torch's CPU allocator held at once, beyond what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        run()
    events = [e for e in watched.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


@pytest.mark.parametrize(
    ("variant", "tolerance"), [("va-pi", 0.15), ("cross-entropy", 0.01), ("ste", 0.01), ("ar-grpo", 0.01)]
)
def test_the_peak_on_fake_tensors_is_what_the_allocator_held_of_real_ones(variant, tolerance):
    """Operations without a gradient have temporaries inside, which do not show on fake tensors."""
    params = small()
    computed = align_peak(params, variant, None)
    real = measured(lambda: phases(params, variant, params.generator.layers))
    assert computed.total == pytest.approx(real, rel=tolerance)


@pytest.mark.parametrize("variant", ["va-pi", "ar-grpo"])
def test_many_layers_need_what_few_layers_tell(variant):
    params = small(generator={"layers": 7})

    def of(layers: int):
        with peaks._fake(gpu=True):
            return phases(params, variant, layers)

    few, whole = fullest(of, 7, (2, 3)), fullest(of, 7, (6, 7))
    assert few == whole and few.total > 0


def test_what_is_freed_is_no_longer_held():
    held = LiveBytes()
    with held:
        first = torch.zeros(250)
        second = first + 1
        del first
        third = second.view(5, 50)  # no bytes of its own
        held.begin("later")
        fourth = torch.cat([third, third])
    assert held.peaks == {"start": {"activations": 2000}, "later": {"activations": 3000}}
    del second, third, fourth
    assert held.held == {}


@pytest.mark.parametrize(("name", "variant"), [(name, v) for name, variants in FULL_SIZE.items() for v in variants])
def test_every_alignment_at_full_size_fits_80_gb(name, variant):
    peak = align_peak(params_of(name), variant, 80 * GB)
    assert 10 * GB < peak.total < 80 * GB - CUDA_RESERVE


@pytest.mark.parametrize("name", FULL_SIZE)
def test_every_image_set_at_full_size_fits_80_gb(name):
    peak = sample_peak(params_of(name), "va-pi", 80 * GB)
    assert 3 * GB < peak.total < 80 * GB - CUDA_RESERVE


def as_advised(name: str, variant: str):
    """A profile with every parameter at its lowest that the message of a full memory names first, on one GPU."""
    content = read_profile(name)
    while True:
        levers = memory_levers(check_params(content), f"align@{variant}")
        wanted = [lever for lever in levers if lever.same_result and lever.name != "launch.strategy"]
        if not wanted:
            return check_params(content)
        for lever in wanted:
            *sections, key = lever.name.split(".")
            section = content
            for part in sections:
                section = section[part]
            section[key] = yaml.safe_load(lever.lower)


@pytest.mark.parametrize("variant", FULL_SIZE["llamagen-xl-c2i"])
def test_xl_fits_24_gb_with_what_the_message_advises(variant):
    params = as_advised("llamagen-xl-c2i", variant)
    assert params.launch.activation_checkpointing and not params.launch.compile
    assert align_peak(params, variant, 24 * GB).total < 24 * GB - CUDA_RESERVE


def test_images_of_xl_are_drawn_on_24_gb():
    assert sample_peak(params_of("llamagen-xl-c2i"), "va-pi", 24 * GB).total < 24 * GB - CUDA_RESERVE
