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
from vapi_core.data.captioned import captioned_folder_source, dataset_source, webdataset_source
from vapi_core.data.labelled import labelled_dataset_source, labelled_webdataset_source
from vapi_core.data.sources import ImageSource, folder_source, mnist_source, require_class_numbers
from vapi_core.data.subset import SubsetPlan, plan_subset, write_subset
from vapi_core.scenes.source import DIGITS, plan_scenes, scene_prompts
from vapi_core.scoring.geneval.folder import read_prompts


def plan(params, arguments) -> StagePlan:
    return StagePlan("subset", SUBSET, params.subset.model_dump() | {"task": params.task})


def open_source(params: SubsetParams) -> ImageSource:
    if params.source == "mnist":
        return mnist_source(params.image_size)
    assert params.path is not None
    if params.source == "dataset":
        assert params.dataset is not None
        split, image, label = params.dataset.split, params.dataset.image_column, params.dataset.target_column
        return labelled_dataset_source(
            params.path,
            params.image_size,
            split=split,
            image_column=image,
            label_column=label,
            exif_orientation=params.exif_orientation,
        )
    if params.source == "webdataset":
        return labelled_webdataset_source(params.path, params.image_size, exif_orientation=params.exif_orientation)
    return folder_source(params.path, params.image_size, exif_orientation=params.exif_orientation)


def open_captioned_source(params: SubsetParams) -> ImageSource:
    assert params.path is not None
    if params.source == "dataset":
        assert params.dataset is not None
        split, image, caption = params.dataset.split, params.dataset.image_column, params.dataset.target_column
        return dataset_source(
            params.path,
            params.image_size,
            split=split,
            image_column=image,
            caption_column=caption,
            exif_orientation=params.exif_orientation,
        )
    if params.source == "webdataset":
        return webdataset_source(params.path, params.image_size, exif_orientation=params.exif_orientation)
    return captioned_folder_source(params.path, params.image_size, exif_orientation=params.exif_orientation)


def plan_images(params: Params) -> tuple[ImageSource, SubsetPlan]:
    """The source and which of its images go where; scenes are made for their split."""
    s = params.subset
    if s.source == "scenes":
        return plan_scenes(s.splits, s.image_size, s.seed)
    source = open_source(s) if params.task == "c2i" else open_captioned_source(s)
    return source, plan_subset(source.labels, source.classes, s.splits, s.seed)


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
