"""Stages `score@VARIANT` and `score-control@CONTROL`: the scores of a variant's image sets, in files and runs."""

import argparse

from pipelines.config.params import Params
from pipelines.config.paths import REFERENCES
from pipelines.config.variant import find_variant
from pipelines.frame.stage import Stage, StagePlan, run_stage
from pipelines.variants.run_scores import report_scores
from pipelines.variants.scoring import score_variant


def plan(params: Params, arguments: argparse.Namespace) -> StagePlan:
    variant = find_variant(params, arguments.variant)
    settings = params.score.model_dump() | {"variant": variant.name, "table": variant.table}
    return StagePlan(variant.stage("score"), variant.scores, settings, (variant.samples, REFERENCES))


def work(stage: Stage, arguments: argparse.Namespace) -> None:
    variant = find_variant(stage.params, arguments.variant)
    table, judged = score_variant(stage, variant)
    report_scores(stage, variant, table, judged)


def main(arguments: list[str]) -> int:
    """Runs the stage; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.stages score")
    parser.add_argument("variant", help="its name in params.yaml, of a variant or a control")
    return run_stage(plan, work, parser.parse_args(arguments))
