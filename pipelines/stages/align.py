"""Stage `align@VARIANT`: the alignments of one variant, one for each seed."""

import argparse

from pipelines.config.params import Params
from pipelines.config.paths import ALIGNED, CLASSIFIERS, GENERATOR, TOKENIZER, TOKENS
from pipelines.config.variant import find_variant
from pipelines.frame.stage import Stage, StagePlan, run_stage
from pipelines.variants.training import align_variant
from vapi_core.errors import ParameterError


def plan(params: Params, arguments: argparse.Namespace) -> StagePlan:
    variant = find_variant(params, arguments.variant)
    if variant.alignment is None:
        raise ParameterError("variants", f"'{variant.name}' is a control: the base, which is not aligned.")
    alignment = variant.alignment
    settings = alignment.settings | {
        "dtype": params.launch.dtype,
        "kept_steps": alignment.kept_steps,
        "threads": alignment.threads,
    }
    upstream = (GENERATOR, TOKENS, TOKENIZER, CLASSIFIERS / "reward")
    return StagePlan(variant.stage("align"), ALIGNED / variant.name, settings, upstream, tracked=False)


def work(stage: Stage, arguments: argparse.Namespace) -> None:
    align_variant(stage, find_variant(stage.params, arguments.variant))


def main(arguments: list[str]) -> int:
    """Runs the stage; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.stages align")
    parser.add_argument("variant", help="its name in params.yaml")
    return run_stage(plan, work, parser.parse_args(arguments), parallel=True)
