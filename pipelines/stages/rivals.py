"""Stage `rivals`: the table of all methods and controls, what VA-π wins and loses, and the figures beside it."""

import argparse

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pipelines.comparison import compare, match_temperatures, nested, summarize
from pipelines.figures import plot_densities, plot_precision_recall
from pipelines.inputs import open_samples, open_tokenizer, read_scores
from pipelines.params import Params
from pipelines.paths import BASE, REPORTS, RIVAL_REPORTS, STAGE_METRICS, SUBSET
from pipelines.rivals_text import write_rivals
from pipelines.stage import Stage, StagePlan, run_stage
from pipelines.stages.sample import plan_sets
from pipelines.stages.score import TABLE, whole_runs
from vapi_core.data.images import images_of_a_pass, resize_bicubic, to_tensor
from vapi_core.data.subset import Subset
from vapi_core.files import atomic_path, read_json, write_json


def plan(params, arguments) -> StagePlan:
    upstream = (REPORTS / TABLE.parent, RIVAL_REPORTS / TABLE.parent)
    return StagePlan("rivals", None, params.rivals.model_dump(), upstream, reports=RIVAL_REPORTS)


def work(stage: Stage, arguments: argparse.Namespace) -> None:
    params = stage.params
    both = pd.concat([read_scores(reports / TABLE) for reports in (REPORTS, RIVAL_REPORTS)])
    everything = both[both["reference"] == params.score.references[0]]
    scores = whole_runs(everything)
    summary = summarize(scores)
    matches = match_temperatures(summary, params.sample.temperature)
    comparisons = compare(scores, params.sample.temperature, matches)
    tables = {"summary": summary, "temperatures": matches, "comparisons": comparisons}
    with atomic_path(RIVAL_REPORTS / "tables") as temporary:
        temporary.mkdir()
        for name, table in tables.items():
            table.to_csv(temporary / f"{name}.csv", index=False, float_format="%.6g", lineterminator="\n")
    write_json(RIVAL_REPORTS / "metrics.json", nested(summary))
    figures = RIVAL_REPORTS / "figures"
    plot_precision_recall(figures / "precision-recall.png", scores, ways(everything, params))
    plot_densities(figures / "densities.png", *project(embed_sets(stage)))
    folders = (STAGE_METRICS, RIVAL_REPORTS / "stages")
    stages = {path.stem: read_json(path) for folder in folders for path in sorted(folder.glob("*.json"))}
    write_rivals(REPORTS / "rivals.md", params, summary, matches, comparisons, stages)


def ways(scores: pd.DataFrame, params: Params) -> pd.DataFrame:
    """Scores of every method's first seed at step 0 (the base), at the steps that were kept, and at the end."""
    if "steps" not in scores:
        return scores.iloc[:0].assign(steps=0)
    first = scores[(scores["seed"] == params.align.seeds[0]) & (scores["temperature"] == params.sample.temperature)]
    first = first[first["guidance_scale"] == 1.0]
    base = first[first["model"] == BASE].assign(steps=0)
    methods = first[first["model"] != BASE]
    starts = [base.assign(model=model) for model in methods["model"].unique()]
    return pd.concat([*starts, methods.fillna({"steps": params.align.steps})]).sort_values("steps", kind="stable")


def embed_sets(stage: Stage) -> dict[str, np.ndarray]:
    """Encoder outputs [N, D] of held-out images and of one set of each model, at the main setting.

    The tokenizer's encoder is the one network here that neither scores nor rewards (unless `align.reward.embedding` does).
    """
    params, tokenizer = stage.params, open_tokenizer(stage.device)
    images = {"real": Subset.open(SUBSET).split(params.score.reference_splits[0])[0]}
    for model in (BASE, *params.align.methods, *params.rivals.methods):
        main = plan_sets(params, model)[0]
        images[model] = open_samples(main.directory)[0]
    embedded = {}
    for name, pixels in images.items():
        batch = images_of_a_pass(pixels.shape[1])
        with torch.inference_mode():
            parts = [
                tokenizer.embed(to_sampled_size(to_tensor(pixels[i : i + batch], stage.device), params))
                for i in range(0, len(pixels), batch)
            ]
        embedded[name] = torch.cat(parts).flatten(1).cpu().numpy()
    return embedded


def to_sampled_size(images: Tensor, params: Params) -> Tensor:
    """Images [N, 3, H, W] at the size of the sampled ones."""
    size = params.sample.save_size or images.shape[-1]
    return images if size == images.shape[-1] else resize_bicubic(images, size).clamp(-1, 1)


def project(embedded: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], float]:
    """Two principal components, of the real images, of all sets [N, D]; and the share of the real variance they hold."""
    real = embedded["real"]
    center = real.mean(0)
    _, singular, axes = np.linalg.svd(real - center, full_matrices=False)
    for axis in axes[:2]:  # the sign of a component is arbitrary
        axis *= np.sign(axis[np.abs(axis).argmax()])
    share = float(np.square(singular[:2]).sum() / np.square(singular).sum())
    return {name: (values - center) @ axes[:2].T for name, values in embedded.items()}, share


if __name__ == "__main__":
    run_stage(plan, work)
