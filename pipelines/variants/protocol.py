"""The protocol behind published ImageNet numbers, and where a run departs from it: FID is comparable only under one
protocol.

ADM's evaluator, which LlamaGen and VA-π use: 50,000 images at 256 pixels, Inception's features, FID against the
statistics of `VIRTUAL_imagenet256_labeled.npz`, precision and recall against its 10,000 images, Inception Score with 10
parts.
"""

from pathlib import Path
from typing import Any

from pipelines.config.params import Params, ScoreParams
from vapi_core.files import sha256_file
from vapi_core.scoring.features import inception_weights
from vapi_core.scoring.fidelity import ReferenceBatch

PROTOCOL = Path("scores", "protocol.json")  # below a stage's folder of reports
INCEPTION = "inception-v3-compat"
BATCH_NAME, BATCH_IMAGES = "VIRTUAL_imagenet256_labeled", 10_000
COUNT, SIDE, PARTS = 50_000, 256, 10
INCEPTION_SHA256 = "6726825d"  # how the published file's hash begins; it stands in the file's name


def facts_of_protocol(params: ScoreParams, batch: ReferenceBatch | None) -> dict[str, Any]:
    """What scores were made with, as far as the params do not tell it."""
    facts: dict[str, Any] = {"reference_batch": None, "inception_sha256": None}
    if batch is not None:
        assert params.reference_batch is not None
        sha256 = sha256_file(params.reference_batch)
        facts["reference_batch"] = {"images": len(batch.images), "side": batch.images.shape[1], "sha256": sha256}
    if INCEPTION in params.extractors:
        facts["inception_sha256"] = sha256_file(inception_weights(params.inception_checkpoint))
    return facts


def departures(params: Params, facts: dict[str, Any]) -> list[str]:
    """Where a run that uses Inception or a reference batch departs from the protocol; nothing for other runs."""
    score, sample, batch = params.score, params.sample, facts["reference_batch"]
    if batch is None and INCEPTION not in score.extractors:
        return []
    found = []
    if batch is None:
        found.append(f"the reference is the split `{score.references[0]}`, not the ADM batch `{BATCH_NAME}.npz`")
    elif score.references[0] != BATCH_NAME or (batch["images"], batch["side"]) != (BATCH_IMAGES, SIDE):
        found.append(
            f"the reference is `{score.references[0]}`, {batch['images']:,} images of {batch['side']} pixels, not the "
            f"ADM batch `{BATCH_NAME}.npz` with {BATCH_IMAGES:,} of {SIDE}"
        )
    if INCEPTION not in score.extractors:
        found.append(f"no features of Inception: `{INCEPTION}` is not among score.extractors")
    elif not facts["inception_sha256"].startswith(INCEPTION_SHA256):
        found.append(f"Inception's weights are not the published ones (sha256 {facts['inception_sha256'][:8]})")
    if sample.count != COUNT:
        found.append(f"sets of {sample.count:,} images, not {COUNT:,}")
    side = sample.save_size or params.subset.image_size
    if side != SIDE:
        found.append(f"images of {side} pixels, not {SIDE}")
    if score.is_splits != PARTS:
        found.append(f"an Inception Score of {score.is_splits} parts, not {PARTS}")
    return found


def warning(params: Params, facts: dict[str, Any]) -> str:
    """A paragraph for the report; empty where there is nothing to warn of."""
    found = departures(params, facts)
    if not found:
        return ""
    return (
        "**Not comparable with published ImageNet numbers**, which are made by ADM's protocol. Here: "
        + "; ".join(found)
        + "."
    )
