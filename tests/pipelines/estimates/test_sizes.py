"""What lies on the disk is known before any of it is there."""

from pathlib import Path

import pytest

from pipelines.config.loading import check_params
from pipelines.config.profiles import read_profile
from pipelines.estimates.sizes import disks, images_of_set, parameters, set_bytes
from pipelines.estimates.space import behind, to_come

ROOT = Path(__file__).parents[3]


def profile(name: str, **align):
    content = read_profile(name, ROOT)
    content["align"] |= align
    return content


def test_the_official_models_have_their_numbers_of_parameters():
    sizes = parameters(check_params(profile("llamagen-xl-c2i")))
    assert sizes.generator == pytest.approx(775e6, rel=0.001)
    assert sizes.tokenizer == pytest.approx(72e6, rel=0.01)


def test_image_sets_are_as_large_as_their_pixels_and_labels():
    params = check_params(profile("mnist"))
    assert set_bytes(params) == 2000 * (32 * 32 * 3 + 8)
    assert images_of_set(check_params(profile("llamagen-xl-t2i"))) == 553 * 4


def test_xl_with_three_seeds_a_control_and_a_temperature_fits_300_gb_where_the_cache_has_links():
    """docs/full-size.md: base, VA-π and cross-entropy on prefixes with the same noise; the base at 0.9 too."""
    content = profile("llamagen-xl-c2i", seeds=[0, 1, 2])
    content["controls"]["base"]["temperatures"] = [1.0, 0.9]
    experiment = behind("subset", check_params(content))
    assert len([disk for disk in experiment if disk.stage.startswith("sample")]) == 3
    assert to_come(experiment, set(), copies=False) < 300e9 < to_come(experiment, set(), copies=True)


def test_steps_that_are_kept_and_states_that_are_resumed_from_count():
    content = profile("mnist", checkpoint_every=10, keep_every=0)
    few = {disk.stage: disk for disk in disks(check_params(content))}["align@va-pi"]  # keeps weights after 20 and 40
    plain = {disk.stage: disk for disk in disks(check_params(content))}["align@cross-entropy"]
    assert few.output == 3 * plain.output
    assert plain.working == 3 * 12 * parameters(check_params(content)).generator
