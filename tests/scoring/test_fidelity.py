"""FID, Inception Score, KID, precision and recall of features."""

import numpy as np
import pytest
import torch

from vapi_core.errors import FileError, ParameterError
from vapi_core.randomness import derive_seed
from vapi_core.scoring import fidelity as fidelity_module
from vapi_core.scoring.features import Features
from vapi_core.scoring.fidelity import (
    FeatureStatistics,
    feature_statistics,
    fidelity,
    frechet_distance,
    load_reference_batch,
)


def gaussian_features(count: int, seed: int, shift: float = 0.0, width: int = 16) -> Features:
    random = np.random.default_rng(seed)
    features = random.normal(size=(count, width)) + shift
    return {"features": features.astype(np.float32), "logits": random.normal(size=(count, 10)).astype(np.float32)}


def test_samples_like_the_reference_score_better_than_samples_that_are_not():
    reference = gaussian_features(300, seed=0)
    near, far = (fidelity(gaussian_features(300, 1, shift), reference, seed=0) for shift in (0.0, 1.5))
    assert near["fid"] < far["fid"]
    assert near["kid_mean"] < far["kid_mean"]
    assert near["precision"] > 0.7 > far["precision"]
    assert near["recall"] > 0.7 > far["recall"]


def test_samples_that_repeat_one_image_are_precise_but_recall_little():
    reference = gaussian_features(300, seed=0)
    collapsed = gaussian_features(300, seed=1)
    collapsed["features"] = reference["features"][:1] + 1e-3 * collapsed["features"]
    scores = fidelity(collapsed, reference, seed=0)
    assert scores["precision"] == 1.0
    assert scores["recall"] < 0.05


def test_the_scores_tell_how_many_images_they_are_of():
    scores = fidelity(gaussian_features(120, 1), gaussian_features(80, 0), seed=0)
    assert (scores["samples"], scores["reference_samples"]) == (120, 80)


def test_the_same_seed_gives_the_same_scores_and_another_draws_other_kid_subsets():
    samples, reference = gaussian_features(100, 1), gaussian_features(100, 0)
    first, again, other = (fidelity(samples, reference, seed=seed, kid_subset_size=50) for seed in (0, 0, 1))
    assert first == again
    assert first["kid_mean"] != other["kid_mean"]
    assert first["fid"] == other["fid"]


def test_the_inception_score_is_the_number_of_classes_when_they_are_certain_and_balanced():
    samples = gaussian_features(100, 1)
    samples["logits"] = 100 * np.eye(5, dtype=np.float32)[np.arange(100) % 5]
    assert fidelity(samples, gaussian_features(100, 0), seed=0, inception_splits=1)["is_mean"] == pytest.approx(5)


def test_fid_of_known_gaussians_is_the_closed_form():
    a = FeatureStatistics(np.zeros(3), np.diag([1.0, 4.0, 9.0]))
    b = FeatureStatistics(np.array([1.0, 2.0, 2.0]), np.diag([4.0, 4.0, 1.0]))
    assert frechet_distance(a, b) == pytest.approx(9 + 1 + 0 + 4)  # |mu|^2 + sum of (sigma_a - sigma_b)^2


def test_fid_is_exact_with_fewer_images_than_features():
    """tr (S_a S_b)^(1/2) is also the nuclear norm of the product of the centred features, here of full rank."""
    a, b = (gaussian_features(40, seed, width=100)["features"].astype(np.float64) for seed in (0, 1))
    centred_a, centred_b = ((x - x.mean(0)) / np.sqrt(len(x) - 1) for x in (a, b))
    trace = np.linalg.norm(centred_a @ centred_b.T, "nuc")
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + (centred_a**2).sum() + (centred_b**2).sum() - 2 * trace
    assert frechet_distance(feature_statistics(a), feature_statistics(b)) == pytest.approx(expected, rel=1e-6)


def test_fid_can_be_taken_to_statistics_of_more_images_than_the_reference_has():
    samples, reference = gaussian_features(100, 1), gaussian_features(100, 0)
    statistics = FeatureStatistics(np.full(16, 2.0), np.eye(16))
    scores = fidelity(samples, reference, seed=0, reference_statistics=statistics)
    assert scores["fid"] == frechet_distance(feature_statistics(samples["features"]), statistics)
    assert scores["precision"] == fidelity(samples, reference, seed=0)["precision"]


def test_precision_and_recall_are_the_same_when_distances_are_computed_in_parts(monkeypatch):
    samples, reference = gaussian_features(150, 1, shift=0.5), gaussian_features(130, 0)
    whole = fidelity(samples, reference, seed=0)
    monkeypatch.setattr("vapi_core.scoring.fidelity.DISTANCE_ROWS", 40)
    assert fidelity(samples, reference, seed=0) == whole


def test_features_of_different_extractors_are_refused():
    with pytest.raises(ParameterError, match="16 features, but the reference has 12"):
        fidelity(gaussian_features(50, 1), gaussian_features(50, 0, width=12), seed=0)


def test_too_few_images_are_refused_with_the_number_that_is_needed():
    with pytest.raises(ParameterError, match="10 samples and 4 reference images at least; there are 50 and 3"):
        fidelity(gaussian_features(50, 1), gaussian_features(3, 0), seed=0)


def test_a_reference_batch_of_adm_has_statistics_and_images(tmp_path):
    statistics = feature_statistics(gaussian_features(50, 0)["features"])
    images = np.zeros((2, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "batch.npz", arr_0=images, mu=statistics.mu.astype(np.float32), sigma=statistics.sigma)
    loaded = load_reference_batch(tmp_path / "batch.npz")
    assert loaded.statistics.mu.dtype == np.float64 and loaded.images.shape == (2, 8, 8, 3)
    assert frechet_distance(loaded.statistics, statistics) == pytest.approx(0, abs=1e-6)


def test_an_adm_file_without_statistics_or_of_another_kind_is_named(tmp_path):
    np.savez(tmp_path / "samples.npz", arr_0=np.zeros(3))
    np.savez(tmp_path / "unfit.npz", mu=np.zeros(3), sigma=np.eye(4), arr_0=np.zeros((1, 8, 8, 3), np.uint8))
    np.savez(tmp_path / "floats.npz", mu=np.zeros(3), sigma=np.eye(3), arr_0=np.zeros((1, 8, 8, 3)))
    np.save(tmp_path / "array.npy", np.zeros(3))
    torch.save({"mu": torch.zeros(3)}, tmp_path / "torch.pt")
    (tmp_path / "text.npz").write_text("not found")
    for name, problem in {
        "samples.npz": "an array is missing.*a sample batch holds arr_0 alone",
        "floats.npz": "arr_0 is float64",
        "unfit.npz": "do not fit together",
        "array.npy": "is not an npz",
        "torch.pt": "an array is missing",  # torch's files are zip archives too
        "text.npz": "is not an npz",
        "missing.npz": "is missing",
    }.items():
        with pytest.raises(FileError, match=problem) as error:
            load_reference_batch(tmp_path / name)
        assert error.value.path == tmp_path / name


def test_statistics_of_the_same_features_are_computed_once(tmp_path, monkeypatch):
    features = gaussian_features(50, seed=0)["features"]
    first = fidelity_module.cached_statistics(tmp_path, features)
    plain = feature_statistics(features)
    assert np.array_equal(first.mu, plain.mu) and np.array_equal(first.sigma, plain.sigma)
    monkeypatch.setattr(fidelity_module, "feature_statistics", None)  # not asked again
    again = fidelity_module.cached_statistics(tmp_path, features.copy())
    assert np.array_equal(again.sigma, first.sigma)
    monkeypatch.undo()
    features[3, 4] += 1
    assert not np.array_equal(fidelity_module.cached_statistics(tmp_path, features).sigma, first.sigma)
    assert len(list(tmp_path.iterdir())) == 2


def test_damaged_statistics_are_named(tmp_path):
    features = gaussian_features(50, seed=0)["features"]
    fidelity_module.cached_statistics(tmp_path, features)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(FileError, match="only a cache"):
        fidelity_module.cached_statistics(tmp_path, features)


def test_every_score_is_torch_fidelitys_of_the_same_features():
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    samples, reference = gaussian_features(90, 1), gaussian_features(70, 2)
    scores = fidelity(samples, reference, seed=0, inception_splits=10, kid_subsets=3, kid_subset_size=20)
    a, b, logits = (torch.from_numpy(x) for x in (samples["features"], reference["features"], samples["logits"]))
    theirs = fid_statistics_to_metric(
        fid_features_to_statistics(a.double()), fid_features_to_statistics(b.double()), verbose=False
    )
    theirs |= isc_features_to_metric(logits, 10, rng_seed=derive_seed(0, "inception score") % 2**32)
    seed = derive_seed(0, "kid subsets") % 2**32
    theirs |= kid_features_to_metric(a, b, kid_subsets=3, kid_subset_size=20, rng_seed=seed, verbose=False)
    theirs |= prc_features_to_metric(a, b, prc_neighborhood=3, prc_batch_size=1000, save_cpu_ram=False, verbose=False)
    names = {
        "fid": "frechet_inception_distance",
        "is_mean": "inception_score_mean",
        "is_std": "inception_score_std",
        "kid_mean": "kernel_inception_distance_mean",
        "kid_std": "kernel_inception_distance_std",
        "precision": "precision",
        "recall": "recall",
    }
    for ours, official in names.items():
        assert scores[ours] == pytest.approx(theirs[official], rel=1e-6), ours
