"""Stage `cell` and the cells of the ablation tables: alignment, one image set and its scores in one process.

Nothing but the table's numbers is kept: scores, curves and the first images. A cell that is the one of params.yaml as it
stands (say, where a table's noise ratio is that of `align`) is copied from there, not computed again.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipelines import geneval_sets
from pipelines.cells import Cell, add_arguments, cell_of
from pipelines.comparison import SCORE_TITLES, SUBJECT
from pipelines.inputs import open_generator, open_prompts, open_tokenizer, read_scores
from pipelines.params import Params
from pipelines.paths import ABLATION_REPORTS, BASE, CLASSIFIERS, GENERATOR, SUBSET, TOKENIZER, TOKENS, remedy
from pipelines.progress import progress
from pipelines.stage import Stage, StagePlan, run_stage, upstream_keys
from pipelines.stages.align import align, open_alignment
from pipelines.stages.sample import choose_labels, draw_images, open_conditions
from pipelines.stages.score import open_reference_batch, open_references, score_images
from pipelines.tracking import stage_key
from vapi_core.alignment.data import batch_conditions
from vapi_core.data.subset import Subset
from vapi_core.files import read_texts, write_json
from vapi_core.memory import free_bytes
from vapi_core.models.policy import Policy
from vapi_core.models.tokenizer import Tokenizer
from vapi_core.sampling import Sampler, batch_in_memory
from vapi_core.scoring.features import extract

UPSTREAM = (SUBSET, CLASSIFIERS / "reward", CLASSIFIERS / "scorer", TOKENIZER, TOKENS, GENERATOR)
SCORES, CURVES, IMAGES, IDENTITY = "scores.csv", "curves.csv", "images.npy", "identity.json"
KEPT_IMAGES = 10


def plan(params: Params, arguments: argparse.Namespace) -> StagePlan:
    cell = cell_of(arguments, params)
    own = cell.apply(params)
    align = {} if cell.table == BASE else own.align.of_method(SUBJECT)
    align.pop("keep_every", None)  # nothing is kept here
    sample = own.sample.model_dump(exclude={"guidance_scales", "control_temperatures"})
    return StagePlan(
        cell.stage,
        cell.directory,
        {**align, "seed": cell.seed, "terms": cell.settings(params)["reward"], "dtype": own.launch.dtype}
        | {"sample": sample, "score": own.score.model_dump()},
        UPSTREAM,
        parent=None,
        reports=ABLATION_REPORTS,
    )


def work(stage: Stage, arguments: argparse.Namespace) -> None:
    cell = cell_of(arguments, stage.params)
    stage = replace(stage, params=cell.apply(stage.params))
    stage.output.mkdir(parents=True, exist_ok=True)
    identity = stage_key("cell", stage.plan.params, upstream_keys(stage.plan))
    as_it_stands = Cell(SUBJECT, "", cell.seed).directory
    if cell.changes and read_texts(as_it_stands / IDENTITY, ["identity"], remedy(as_it_stands))["identity"] == identity:
        copy(stage, as_it_stands)
    else:
        compute(stage, cell)
    write_json(stage.output / IDENTITY, {"identity": identity})


def compute(stage: Stage, cell: Cell) -> None:
    generator, tokenizer = open_base(stage) if cell.table == BASE else open_aligned(stage, cell.seed)
    images, labels = draw(stage, cell, generator, tokenizer)
    np.save(stage.output / IMAGES, images[:KEPT_IMAGES])
    finish(stage, score(stage, cell, images, labels))


def open_base(stage: Stage) -> tuple[Policy, Tokenizer]:
    return open_generator(GENERATOR, stage.device), open_tokenizer(stage.device)


def open_aligned(stage: Stage, seed: int) -> tuple[Policy, Tokenizer]:
    """The generator after its alignment, which is that of stage `align`; writes its curves."""
    alignment = open_alignment(stage, SUBJECT, seed)
    align(stage, alignment)
    curves = stage.plan.reports / "curves" / f"{stage.plan.name}.csv"
    (stage.output / CURVES).write_bytes(curves.read_bytes())
    return alignment.generator, alignment.tokenizer


def draw(stage: Stage, cell: Cell, generator: Policy, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, H, W, 3] and labels [N] of the main setting without guidance, drawn as stage `sample` does."""
    params = stage.params.sample
    seed, size = params.seed + cell.seed, params.save_size or stage.params.subset.image_size
    labels = choose_labels(stage.params, seed)
    conditions = open_conditions(stage.params, labels)
    policy = generator.to(stage.dtype)
    sampler = Sampler(policy, params.config(params.temperature, 1.0), stage.params.launch.compile)
    batch = params.batch_size or batch_in_memory(free_bytes(stage.device), policy, tokenizer, guided=False)
    images = np.empty((len(labels), size, size, 3), np.uint8)
    with progress(f"{stage.plan.name}, samples", len(labels), "images") as advance:
        for start in range(0, len(labels), batch):
            part = range(start, min(start + batch, len(labels)))
            condition = batch_conditions(conditions, np.asarray(part), stage.device)
            images[part.start : part.stop] = draw_images(sampler, tokenizer, condition, part, seed, size)
            advance(len(part))
    return images, labels


def score(stage: Stage, cell: Cell, images: np.ndarray, labels: np.ndarray) -> pd.DataFrame:
    """Scores against the main reference, one row per extractor, and for text to image one of GenEval."""
    params = stage.params
    main, batch = params.score.references[0], open_reference_batch(params)
    rows: list[dict[str, Any]] = []
    for name in params.score.extractors:
        extractor, features = open_references(name, params, stage.device, batch)
        samples = extract(images, extractor, params.score.batch_size, stage.device)
        scores = score_images(samples, features[main], labels, name, params.score, batch)
        rows.append({"seed": cell.seed, "extractor": name, "reference": main, **scores})
    if params.score.geneval is not None:
        split = params.score.reference_splits[0]
        judge, _ = geneval_sets.open_judge(params.score.geneval, Subset.open(SUBSET), split, stage.device)
        prompts = open_prompts()
        correct = geneval_sets.correct_images(judge, images, labels, prompts)
        by_task = geneval_sets.prompt_rows(correct, labels, prompts).groupby("task")[["correct", "images"]].sum()
        overall = float((by_task["correct"] / by_task["images"]).mean())
        rows.append({"seed": cell.seed, "extractor": "geneval", "reference": main, "overall": overall})
    return pd.DataFrame(rows)


def copy(stage: Stage, source: Path) -> None:
    """Takes over a cell that is the same but for its name."""
    for name in (CURVES, IMAGES):
        (stage.output / name).write_bytes((source / name).read_bytes())
    curves = read_scores(source / CURVES)
    for row in curves.to_dict("records"):
        metrics = {f"train/{name}": value for name, value in row.items() if name != "step" and pd.notna(value)}
        stage.run.log(metrics, step=int(row["step"]))
    target = stage.plan.reports / "curves" / f"{stage.plan.name}.csv"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes((source / CURVES).read_bytes())
    finish(stage, read_scores(source / SCORES))


def finish(stage: Stage, scores: pd.DataFrame) -> None:
    """Writes the scores and reports them, each named score/METRIC EXTRACTOR as those of the experiment."""
    scores.to_csv(stage.output / SCORES, index=False, float_format="%.6g", lineterminator="\n")
    for row in scores.to_dict("records"):
        measured = [name for name in (*SCORE_TITLES, "overall") if pd.notna(row.get(name))]
        stage.metrics.update({f"score/{name} {row['extractor']}": float(row[name]) for name in measured})


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    run_stage(plan, work, parser)
