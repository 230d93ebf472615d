"""The protocol of the ImageNet profiles end to end through DVC, on tiny random files in the official formats."""

import json

import numpy as np
import pandas as pd
import pytest

from pipelines.cli.__main__ import main as vapi
from pipelines.config.loading import check_params
from pipelines.config.profiles import compose, read_profile
from tests.checkout import Checkout
from tests.smoke_assets import PROFILE, write_smoke_assets
from vapi_core.models.checkpoints import load_model
from vapi_core.models.llamagen.checkpoints import import_official
from vapi_core.models.weights import read_state_dict
from vapi_core.scoring.features import cached_features, load_extractor
from vapi_core.scoring.fidelity import feature_statistics, frechet_distance, load_reference_batch


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    checkout = Checkout(tmp_path_factory.mktemp("smoke"))
    (checkout.path / "params.yaml").write_text(compose(PROFILE), encoding="utf-8")
    checkout.set_params(lambda params: params | {"threads": 1})  # other tests use the other core
    missing = checkout.run("python", "-m", "pipelines.stages", "subset")
    assert missing.returncode == 1 and "vapi assets check" in missing.stderr and "c2i_tiny_48.pt" in missing.stderr
    write_smoke_assets(check_params(read_profile(PROFILE)), checkout.path)
    result = checkout.run("dvc", "repro", "report")
    assert result.returncode == 0, result.stdout + result.stderr
    return checkout


def test_the_imported_models_are_the_official_files_tensor_for_tensor(checkout):
    for kind, file in (("tokenizer", "vq_ds16_c2i.pt"), ("generator", "c2i_tiny_48.pt")):
        official = read_state_dict(checkout.path / "assets/smoke" / file)
        imported = load_model(checkout.path / "data" / kind, kind).state_dict()
        assert all((imported[name] == value).all() for name, value in official.items()) and len(imported) == len(
            official
        )


def scores_of(checkout) -> pd.DataFrame:
    return pd.concat(pd.read_csv(path) for path in (checkout.path / "reports/scores/experiment").glob("*/scores.csv"))


def test_images_are_drawn_at_48_pixels_of_random_classes_and_stored_at_32(checkout):
    folder = checkout.path / "data/samples/experiment/va-pi/t1.0-g2.0-0"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert np.load(folder / "images.npy").shape == (12, 32, 32, 3) and manifest["generated_size"] == 48
    assert np.load(folder / "labels.npy").tolist() != (np.arange(12) % 5).tolist()


def test_every_set_is_scored_against_the_reference_batch_alone(checkout):
    scores = scores_of(checkout)
    assert set(scores["reference"]) == {"VIRTUAL_imagenet256_labeled"}
    assert set(zip(scores["variant"], scores["guidance_scale"], strict=True)) == {
        (variant, guidance) for variant in ("base", "va-pi", "cross-entropy") for guidance in (1.0, 2.0)
    }
    assert (scores["reference_samples"] == 8).all()
    assert np.isfinite(scores[["fid", "is_mean", "precision", "recall"]].to_numpy()).all()


def test_fid_is_to_the_stored_statistics_not_to_those_of_the_stored_images(checkout):
    assets = checkout.path / "assets/smoke"
    extractor = load_extractor("inception-v3-compat", weights=assets / "weights-inception-2015-12-05-6726825d.pth")
    batch = load_reference_batch(assets / "VIRTUAL_imagenet256_labeled.npz")
    samples = np.load(checkout.path / "data/samples/experiment/va-pi/t1.0-g2.0-0/images.npy")
    own, of_images = (
        feature_statistics(cached_features(checkout.path / ".work/features", images, extractor)["features"])
        for images in (samples, batch.images)
    )
    scores = scores_of(checkout).set_index(["variant", "guidance_scale"])
    to_images, to_stored = frechet_distance(own, of_images), frechet_distance(own, batch.statistics)
    assert scores.loc[("va-pi", 2.0), "fid"] == pytest.approx(to_stored, rel=1e-3) and to_stored > 1
    assert abs(to_images - to_stored) > 0.1 * to_stored


def test_the_report_warns_that_none_of_it_is_comparable(checkout):
    report = (checkout.path / "reports/report.md").read_text()
    warning = next(" ".join(text.split()) for text in report.split("\n\n") if "Not comparable" in text)
    assert "8 images of 32 pixels" in warning and "weights are not the published ones" in warning
    assert "sets of 12 images" in warning


def test_the_aligned_weights_go_back_to_an_official_file(checkout, tmp_path):
    folder = checkout.path / "data/aligned/va-pi/0"
    assert vapi(["export", "weights", str(folder), str(tmp_path / "aligned.pt")]) == 0
    aligned, base = load_model(folder, "generator"), load_model(checkout.path / "data/generator", "generator")
    again = import_official(tmp_path / "aligned.pt", base).state_dict()
    assert all((again[name] == value).all() for name, value in aligned.state_dict().items())


def test_a_second_repro_runs_nothing(checkout):
    assert "Running stage" not in checkout.run("dvc", "repro", "report").stdout
