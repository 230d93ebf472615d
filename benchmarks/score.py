"""Scores of many image sets against one reference: what the cache by content saves. Needs torch-fidelity.

The plain schedule computes features and statistics of the reference anew for each set, as evaluators that are run once
a set do; ours hashes and reads them. Features of the sets themselves are new on both sides.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import Results, machine, pairs, peak
from benchmarks.models import CLASSES, Setting, setting
from vapi_core.models.classifier import PlainClassifier
from vapi_core.models.weights import weights_sha256
from vapi_core.randomness import seed_torch, stream
from vapi_core.scoring.features import Extractor, PixelScaling, cached_features, extract
from vapi_core.scoring.fidelity import cached_statistics, feature_statistics, frechet_distance

SETS, COUNT, QUICK_COUNT = 3, 1000, 40
SIDE = 32  # pixels


def build_extractor(s: Setting) -> Extractor:
    seed_torch(0, "benchmark extractor")
    network = PixelScaling(PlainClassifier(CLASSES)).eval().requires_grad_(False)
    return Extractor("benchmark", network.to(memory_format=torch.channels_last), weights_sha256(network))


def ours(extractor: Extractor, reference: np.ndarray, sets: list[np.ndarray], s: Setting, folder: Path) -> list[float]:
    known = cached_features(folder, reference, extractor, device=s.device)["features"]
    statistics = cached_statistics(folder, known)
    features = (extract(images, extractor, device=s.device)["features"] for images in sets)
    return [frechet_distance(feature_statistics(f), statistics) for f in features]


def plain(extractor: Extractor, reference: np.ndarray, sets: list[np.ndarray], s: Setting) -> list[float]:
    fids = []
    for images in sets:
        known = extract(reference, extractor, device=s.device)["features"]
        features = extract(images, extractor, device=s.device)["features"]
        fids.append(frechet_distance(feature_statistics(features), feature_statistics(known)))
    return fids


def random_sets(count: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """A reference and sets, uint8 [N, H, W, 3] each."""
    reference, *sets = stream(0, "benchmark sets").integers(0, 256, (SETS + 1, count, SIDE, SIDE, 3), np.uint8)
    return reference, sets


def benchmark(options: argparse.Namespace) -> Results:
    """FIDs of both sides compared, then timed in pairs."""
    s = setting(options)
    count = QUICK_COUNT if options.quick else options.count or COUNT
    extractor, (reference, sets) = build_extractor(s), random_sets(count)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fids = ours(extractor, reference, sets, s, folder), plain(extractor, reference, sets, s)
        results: Results = {
            "setting": {"sets": SETS, "images_of_a_set": count, "extractor": "small classifier"},
            "machine": machine(s.device),
            "equal_scores": fids[0] == fids[1],
        }
        if options.quick:
            return results
        results |= pairs(
            lambda: ours(extractor, reference, sets, s, folder),
            lambda: plain(extractor, reference, sets, s),
            s.device,
            options.pairs,
        )
        if options.growth:
            results["growth"] = growth(extractor, s, folder, count)
    return results


def growth(extractor: Extractor, s: Setting, folder: Path, count: int) -> list[Results]:
    """Peak memory beside the images as their number doubles, of a reference that is new: features alone should grow."""
    rows = []
    for number in (count, 2 * count, 4 * count):
        reference, sets = random_sets(number)
        new = folder / f"{number} images"
        row: Results = {"quantity": "images_of_a_set", "value": number}
        row["ours"] = peak(lambda r=reference, i=sets, new=new: ours(extractor, r, i, s, new), s.device)
        row["authors"] = peak(lambda r=reference, i=sets: plain(extractor, r, i, s), s.device)
        rows.append(row)
    return rows
