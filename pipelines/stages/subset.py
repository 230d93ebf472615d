"""Stage `subset`: a fixed, seeded, class-balanced subset of the image source."""

import argparse
import dataclasses

from pipelines.params import SubsetParams
from pipelines.paths import SUBSET
from pipelines.progress import progress
from pipelines.stage import Stage, StagePlan, run_stage
from vapi_core.data.sources import ImageSource, folder_source, mnist_source
from vapi_core.data.subset import plan_subset, write_subset


def plan(params, arguments) -> StagePlan:
    return StagePlan("subset", SUBSET, params.subset.model_dump())


def open_source(params: SubsetParams) -> ImageSource:
    if params.source == "mnist":
        return mnist_source(params.image_size)
    assert params.path is not None
    return folder_source(params.path, params.image_size)


def work(stage: Stage, arguments: argparse.Namespace) -> None:
    params = stage.params.subset
    source = open_source(params)
    subset = plan_subset(source.labels, source.classes, params.splits, params.seed)
    with progress("subset", sum(params.splits.values()), "images") as advance:

        def load(index: int):
            advance()
            return source.load(index)

        write_subset(dataclasses.replace(source, load=load), subset, SUBSET)
    stage.metrics |= {"images": sum(params.splits.values()), "classes": len(source.classes)}


if __name__ == "__main__":
    run_stage(plan, work)
