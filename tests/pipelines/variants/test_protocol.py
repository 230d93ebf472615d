"""A report says when its numbers cannot stand beside published ones."""

import dataclasses
import re

import numpy as np
import pytest

from pipelines.config.loading import load_params
from pipelines.variants.protocol import departures, facts_of_protocol, warning
from vapi_core.files import sha256_file
from vapi_core.scoring.fidelity import FeatureStatistics, ReferenceBatch

PUBLISHED = {
    "reference_batch": {"images": 10_000, "side": 256, "sha256": "0" * 64},
    "inception_sha256": "6726825d" + "0" * 56,
}
ADM = "assets/VIRTUAL_imagenet256_labeled.npz"


@pytest.fixture
def params():
    """What the protocol asks for."""
    params = load_params()
    score = {"extractors": ("inception-v3-compat",), "reference_batch": ADM, "is_splits": 10}
    return params.model_copy(
        update={
            "score": params.score.model_copy(update=score),
            "sample": dataclasses.replace(params.sample, count=50_000, save_size=256),
        }
    )


def change(params, section, **values):
    old = getattr(params, section)
    changed = dataclasses.replace(old, **values) if section == "sample" else old.model_copy(update=values)
    return params.model_copy(update={section: changed})


def test_a_run_by_the_protocol_is_not_warned_of(params):
    assert departures(params, PUBLISHED) == [] and warning(params, PUBLISHED) == ""


def test_a_run_with_other_networks_on_its_own_images_makes_no_such_claim():
    assert warning(load_params(), {"reference_batch": None, "inception_sha256": None}) == ""


@pytest.mark.parametrize(
    ("section", "values", "facts", "told"),
    [
        ("score", {"reference_batch": None}, {"reference_batch": None}, "the reference is the split `heldout`"),
        ("score", {"reference_batch": "assets/imagenet_val.npz"}, {}, "the reference is `imagenet_val`"),
        ("score", {}, {"reference_batch": {"images": 50, "side": 256}}, "50 images of 256 pixels, not the ADM batch"),
        ("score", {}, {"inception_sha256": "ab" * 32}, r"weights are not the published ones \(sha256 abababab\)"),
        ("score", {"extractors": ("efficientnet-lite0",)}, {}, "no features of Inception"),
        ("score", {"is_splits": 1}, {}, "1 parts, not 10"),
        ("sample", {"count": 10_000}, {}, "sets of 10,000 images"),
        ("sample", {"save_size": None}, {}, "images of 32 pixels"),
    ],
)
def test_every_departure_is_named(params, section, values, facts, told):
    assert re.search(told, warning(change(params, section, **values), PUBLISHED | facts))


def test_the_facts_are_those_of_the_files(params, tmp_path):
    weights, batch = tmp_path / "inception.pth", tmp_path / "batch.npz"
    weights.write_bytes(b"weights")
    batch.write_bytes(b"batch")
    statistics = FeatureStatistics(np.zeros(2), np.eye(2))
    score = change(params, "score", reference_batch=str(batch), inception_checkpoint=str(weights)).score
    assert facts_of_protocol(score, ReferenceBatch(np.zeros((3, 8, 8, 3), np.uint8), statistics)) == {
        "reference_batch": {"images": 3, "side": 8, "sha256": sha256_file(batch)},
        "inception_sha256": sha256_file(weights),
    }
