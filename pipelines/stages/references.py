"""Stage `references`: what every image set is compared with, and what the tokenizer alone costs."""

import argparse

from pipelines.config.params import Params
from pipelines.config.paths import CLASSIFIERS, REFERENCES, SUBSET, TOKENIZER, TOKENS
from pipelines.stage import Stage, StagePlan, run_stage
from pipelines.variants.scoring import prepare_references


def plan(params: Params, arguments: argparse.Namespace) -> StagePlan:
    upstream = (SUBSET, CLASSIFIERS / "scorer", CLASSIFIERS / "reward", TOKENIZER, TOKENS)
    return StagePlan("references", REFERENCES, params.score.model_dump(), upstream)


def work(stage: Stage, arguments: argparse.Namespace) -> None:
    prepare_references(stage)


if __name__ == "__main__":
    run_stage(plan, work)
