"""How close a set of samples is to a set of reference images: FID, Inception Score, KID, precision and recall.

The formulas are torch-fidelity's; this module feeds them. Its FID takes the trace from the eigenvalues of S_a S_b, fast
enough on one CPU thread (0.6 s for 1280 features, 2.8 s for 2048), also where there are fewer images than features.
Departure: FID's means and covariances are taken of float64 copies of the features.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch

from vapi_core.errors import FileError, ParameterError
from vapi_core.files import atomic_path
from vapi_core.fingerprint import STATISTICS, code_of, fingerprint
from vapi_core.randomness import derive_seed
from vapi_core.scoring.features import Features

DISTANCE_ROWS = 1000  # images whose distances to all others are in memory at a time


@dataclass(frozen=True)
class FeatureStatistics:
    """Mean and covariance of the features of a set of images, all that FID needs of it."""

    mu: np.ndarray  # float64 [D]
    sigma: np.ndarray  # float64 [D, D]


def feature_statistics(features: np.ndarray) -> FeatureStatistics:
    """Mean and (unbiased) covariance of features [N, D], N at least 2."""
    from torch_fidelity.metric_fid import fid_features_to_statistics

    return FeatureStatistics(**fid_features_to_statistics(torch.from_numpy(features).double()))


@dataclass(frozen=True)
class ReferenceBatch:
    """A reference batch of ADM: FID compares with the statistics of a whole training set, the rest with some images."""

    images: np.ndarray  # uint8 [N, H, W, 3]
    statistics: FeatureStatistics  # of Inception's 2048 features: for the extractor "inception-v3-compat" alone


def load_reference_batch(path: Path | str) -> ReferenceBatch:
    """Reads `arr_0`, `mu` and `sigma` of a reference batch of ADM, e.g. VIRTUAL_imagenet256_labeled.npz (10,000
    images).

    The batches are those of guided-diffusion/evaluations, whose evaluator takes FID from the stored statistics,
    precision and recall from the images.

    Raises:
        FileError: the file is missing or damaged, or holds no such arrays.
    """
    path = Path(path)
    try:
        with np.load(path) as arrays:
            statistics = FeatureStatistics(arrays["mu"].astype(np.float64), arrays["sigma"].astype(np.float64))
            images = arrays["arr_0"]
    except FileNotFoundError:
        raise FileError(path, "the file is missing.", "Download ADM's reference batch of your data set.") from None
    except KeyError as error:
        remedy = "Use a reference batch of ADM, which holds mu, sigma and arr_0; a sample batch holds arr_0 alone."
        raise FileError(path, f"an array is missing ({error}).", remedy) from None
    except (OSError, ValueError, EOFError, TypeError, BadZipFile) as error:
        raise FileError(path, f"is not an npz file ({error}).", "Download it again.") from None
    if statistics.mu.ndim != 1 or statistics.sigma.shape != 2 * statistics.mu.shape:
        shapes = f"mu is {statistics.mu.shape}, sigma {statistics.sigma.shape}"
        raise FileError(path, f"the statistics do not fit together: {shapes}.", "Download it again.")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise FileError(path, f"arr_0 is {images.dtype} {images.shape}, not uint8 [N, H, W, 3].", "Download it again.")
    return ReferenceBatch(images, statistics)


def cached_statistics(directory: Path | str, features: np.ndarray) -> FeatureStatistics:
    """`feature_statistics`, kept in `directory` in a file named by the hash of the features [N, D] and of the code.

    Raises:
        FileError: the file kept there is damaged.
    """
    content = np.ascontiguousarray(features)
    made_by = fingerprint(str(content.dtype), str(content.shape), code=code_of(STATISTICS))
    digest = hashlib.sha256(made_by.encode())
    digest.update(content.data)
    path = Path(directory) / f"statistics-{digest.hexdigest()}.npz"
    if not path.is_file():
        statistics = feature_statistics(content)
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, mu=statistics.mu, sigma=statistics.sigma)
    try:
        with np.load(path) as arrays:
            return FeatureStatistics(arrays["mu"], arrays["sigma"])
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise FileError(path, f"the file is damaged ({error}).", "Remove it: it is only a cache.") from None


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """FID, |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), Heusel et al. 2017, arXiv:1706.08500.

    Raises:
        ParameterError: the statistics are of different numbers of features, so of different extractors.
    """
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    if a.mu.shape != b.mu.shape:
        raise ParameterError(
            "extractor", f"gives {a.mu.size} features, but the reference has {b.mu.size}; use the same for both."
        )
    metric = fid_statistics_to_metric({"mu": a.mu, "sigma": a.sigma}, {"mu": b.mu, "sigma": b.sigma}, verbose=False)
    return metric[KEY_METRIC_FID]


def fidelity(
    samples: Features,
    reference: Features,
    *,
    seed: int,
    reference_statistics: FeatureStatistics | None = None,
    inception_splits: int = 10,
    kid_subsets: int = 100,
    kid_subset_size: int = 1000,
    neighborhood: int = 3,
) -> dict[str, float]:
    """All scores of one set of samples, under one extractor.

    FID, Inception Score, precision and recall depend on how many images are compared, so compare only rows with equal
    `samples` and `reference_samples`.

    Args:
        reference: features of the reference images.
        reference_statistics: what FID compares with, if it is more than the reference images (ADM's reference batches
            have statistics of the whole training set, but 10,000 images).
        inception_splits: parts of the samples, whose scores `is_mean` and `is_std` are of.
        kid_subsets: random subsets, drawn from `seed`, whose distances `kid_mean` and `kid_std` are of. Time grows with
            subsets x size^2 x features.
        kid_subset_size: images of a subset; where a set is smaller, all of it.
        neighborhood: the k of the k-nearest-neighbour balls (Kynkaanniemi et al. 2019, arXiv:1904.06991).

    Returns:
        fid, is_mean, is_std, kid_mean, kid_std, precision, recall, samples, reference_samples.

    Raises:
        ParameterError: too few images, or features of different extractors.
    """
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

    a, b = torch.from_numpy(samples["features"]), torch.from_numpy(reference["features"])
    smallest, needed = min(len(a), len(b)), max(2, neighborhood + 1)
    if smallest < needed or len(a) < inception_splits:
        raise ParameterError(
            "samples",
            f"scores need {max(needed, inception_splits)} samples and {needed} reference images at least; "
            f"there are {len(a)} and {len(b)}.",
        )
    fid = frechet_distance(
        feature_statistics(samples["features"]), reference_statistics or feature_statistics(reference["features"])
    )
    inception = isc_features_to_metric(
        torch.from_numpy(samples["logits"]), inception_splits, rng_seed=_seed(seed, "inception score")
    )
    kid = kid_features_to_metric(
        a,
        b,
        kid_subsets=kid_subsets,
        kid_subset_size=min(kid_subset_size, smallest),
        rng_seed=_seed(seed, "kid subsets"),
        verbose=False,
    )
    neighbours = prc_features_to_metric(
        a, b, prc_neighborhood=neighborhood, prc_batch_size=DISTANCE_ROWS, save_cpu_ram=True, verbose=False
    )
    return {
        "fid": fid,
        "is_mean": inception[KEY_METRIC_ISC_MEAN],
        "is_std": inception[KEY_METRIC_ISC_STD],
        "kid_mean": kid[KEY_METRIC_KID_MEAN],
        "kid_std": kid[KEY_METRIC_KID_STD],
        "precision": neighbours[KEY_METRIC_PRECISION],
        "recall": neighbours[KEY_METRIC_RECALL],
        "samples": len(a),
        "reference_samples": len(b),
    }


def _seed(seed: int, purpose: str) -> int:
    """A seed for torch-fidelity's RandomState, which takes 32 bits."""
    return derive_seed(seed, purpose) % 2**32
