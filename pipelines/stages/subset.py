"""Stage `subset`: a fixed, seeded, class-balanced subset of the image source; for text to image the prompts too."""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from pipelines.config.params import Params, SubsetParams
from pipelines.config.paths import PROMPTS, SUBSET
from pipelines.frame.progress import progress
from pipelines.frame.stage import Stage, StagePlan, run_stage
from vapi_core.data.sources import ImageSource, require_class_numbers
from vapi_core.data.subset import SubsetPlan, write_subset
from vapi_core.scenes.source import DIGITS, scene_prompts
from vapi_core.scoring.geneval.folder import read_prompts
from vapi_core.sources import SOURCES


def plan(params, arguments) -> StagePlan:
    return StagePlan("subset", SUBSET, params.subset.model_dump() | {"task": params.task})


def plan_images(params: Params) -> tuple[ImageSource, SubsetPlan]:
    """The source and which of its images go where."""
    source = SOURCES[params.subset.source]
    choose = source.labelled if params.task == "c2i" else source.captioned
    assert choose is not None
    return choose(params.subset)


def prompt_lines(params: SubsetParams) -> list[str]:
    """The prompts as lines of a GenEval prompt file; none for class to image."""
    if params.prompts is None:
        return []
    if isinstance(params.prompts, int):
        requests = scene_prompts(params.prompts, params.seed)
    else:
        from vapi_core.scoring.geneval.detectors import COCO_CLASSES  # imports what reads its models

        classes = DIGITS if params.source == "scenes" else COCO_CLASSES
        requests = [dict(prompt.metadata) for prompt in read_prompts(Path(params.prompts), classes)]
    return [json.dumps(request, ensure_ascii=False) + "\n" for request in requests]


def work(stage: Stage, arguments: argparse.Namespace) -> None:
    params = stage.params.subset
    prompts = prompt_lines(params)
    source, subset = plan_images(stage.params)
    if source.passed_over:
        counts = ", ".join(f"{count} {kind}" for kind, count in source.passed_over.items())
        print(f"{params.path}: passed over, as no images by their names: {counts}", file=sys.stderr)
    if stage.params.task == "c2i" and stage.params.generator.checkpoint is not None:
        require_class_numbers(source.classes, str(params.path))
    with progress("subset", sum(params.splits.values()), "images") as advance:

        def load(index: int):
            advance()
            return source.load(index)

        texts = {PROMPTS.name: "".join(prompts)} if prompts else {}
        write_subset(dataclasses.replace(source, load=load), subset, SUBSET, texts)
    stage.metrics |= {"images": sum(params.splits.values()), "classes": len(source.classes)}


def main(arguments: list[str]) -> int:
    """Runs the stage; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.stages subset")
    return run_stage(plan, work, parser.parse_args(arguments))
