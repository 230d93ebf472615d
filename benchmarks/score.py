"""Scores of many image sets against one reference: what the cache by content saves. Needs torch-fidelity.

The plain schedule computes features and statistics of the reference anew for each set, as evaluators that are run once a
set do; ours hashes and reads them. Features of the sets themselves are new on both sides.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import Results, machine, pairs
from benchmarks.models import CLASSES, Setting, setting
from vapi_core.randomness import seed_torch, stream
from vapi_core.scoring.classifier import PlainClassifier
from vapi_core.scoring.features import Extractor, PixelScaling, cached_features, extract, weights_sha256
from vapi_core.scoring.fidelity import cached_statistics, feature_statistics, frechet_distance

SETS, COUNT, QUICK_COUNT = 3, 1000, 40
SIDE = 32  # pixels


def build_extractor(s: Setting) -> Extractor:
    seed_torch(0, "benchmark extractor")
    network = PixelScaling(PlainClassifier(CLASSES)).eval().requires_grad_(False)
    return Extractor("benchmark", network.to(memory_format=torch.channels_last), weights_sha256(network))


def benchmark(options: argparse.Namespace) -> Results:
    """FIDs of both sides compared, then timed in pairs."""
    s = setting(options)
    count = QUICK_COUNT if options.quick else options.count or COUNT
    extractor, draws = build_extractor(s), stream(0, "benchmark sets")
    reference, *sets = draws.integers(0, 256, (SETS + 1, count, SIDE, SIDE, 3), np.uint8)
    fids: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def ours() -> None:
            known = cached_features(folder, reference, extractor, device=s.device)["features"]
            statistics = cached_statistics(folder, known)
            features = [extract(images, extractor, device=s.device)["features"] for images in sets]
            fids["ours"] = [frechet_distance(feature_statistics(f), statistics) for f in features]

        def plain() -> None:
            fids["authors"] = []
            for images in sets:
                known = extract(reference, extractor, device=s.device)["features"]
                features = extract(images, extractor, device=s.device)["features"]
                fids["authors"].append(frechet_distance(feature_statistics(features), feature_statistics(known)))

        ours()
        plain()
        results: Results = {
            "setting": {"sets": SETS, "images_of_a_set": count, "extractor": "small classifier"},
            "machine": machine(s.device),
            "equal_scores": fids["ours"] == fids["authors"],
        }
        if not options.quick:
            results |= pairs(ours, plain, s.device, options.pairs)
    return results
