"""Which image sets are drawn, and of which classes."""

import numpy as np
import pytest

from pipelines.params import load_params
from pipelines.stages.sample import choose_classes, plan_sets


@pytest.fixture
def params():
    return load_params()


def test_the_base_is_drawn_at_the_control_temperatures_too(params):
    sets = plan_sets(params, "base")
    drawn = {(s.config.temperature, s.config.guidance_scale) for s in sets}
    main = params.sample.temperature
    expected = {(main, scale) for scale in params.sample.guidance_scales}
    assert drawn == expected | {(t, 1.0) for t in params.sample.control_temperatures}
    assert {s.seed for s in sets} == set(params.align.seeds)


def test_an_aligned_generator_is_drawn_with_the_seed_it_was_aligned_with(params):
    for s in plan_sets(params, "va-pi"):
        assert s.generator.parts[-2:] == ("va-pi", str(s.seed))


def test_every_set_has_a_folder_of_its_own(params):
    folders = [s.directory for model in ("base", *params.align.methods) for s in plan_sets(params, model)]
    assert len(folders) == len(set(folders))


def test_balanced_classes_are_equally_many_and_random_ones_follow_their_seed():
    assert np.bincount(choose_classes(100, 10, "balanced", 0)).tolist() == [10] * 10
    random = choose_classes(100, 10, "random", 0)
    assert random.min() >= 0 and random.max() <= 9
    assert np.array_equal(random, choose_classes(100, 10, "random", 0))
    assert not np.array_equal(random, choose_classes(100, 10, "random", 1))
