"""Stage `references`: what every image set is compared with, and what the tokenizer alone costs."""

import argparse

from pipelines.config.params import Params
from pipelines.config.paths import CLASSIFIERS, REFERENCES, SUBSET, TOKENIZER, TOKENS
from pipelines.frame.stage import Stage, StagePlan, run_stage
from pipelines.variants.scoring import prepare_references


def plan(params: Params, arguments: argparse.Namespace) -> StagePlan:
    upstream = (SUBSET, *(CLASSIFIERS / role for role in ("scorer", "uci", "reward")), TOKENIZER, TOKENS)
    return StagePlan("references", REFERENCES, params.score.model_dump(), upstream)


def work(stage: Stage, arguments: argparse.Namespace) -> None:
    prepare_references(stage)


def main(arguments: list[str]) -> int:
    """Runs the stage; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.stages references")
    return run_stage(plan, work, parser.parse_args(arguments))
