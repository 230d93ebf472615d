"""Stages `sample@VARIANT` and `sample-control@CONTROL`: the image sets of a variant, every seed and setting."""

import argparse

from pipelines.config.params import Params
from pipelines.config.paths import SUBSET, TOKENIZER, TOKENS
from pipelines.config.variant import find_variant
from pipelines.frame.stage import Stage, StagePlan, run_stage
from pipelines.variants.drawing import draw_variant


def plan(params: Params, arguments: argparse.Namespace) -> StagePlan:
    variant = find_variant(params, arguments.variant)
    outputs = dict.fromkeys(variant.output(seed) for seed in variant.seeds)
    settings = {"variant": variant.name, "sets": [vars(config) for config in variant.samplings]}
    settings |= vars(params.sample) | {"seeds": variant.seeds, "dtype": params.launch.dtype}
    upstream = (SUBSET, TOKENIZER, *([TOKENS] if params.task == "t2i" else []), *outputs)
    return StagePlan(variant.stage("sample"), variant.samples, settings, upstream)


def work(stage: Stage, arguments: argparse.Namespace) -> None:
    draw_variant(stage, find_variant(stage.params, arguments.variant))


def main(arguments: list[str]) -> int:
    """Runs the stage; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.stages sample")
    parser.add_argument("variant", help="its name in params.yaml, of a variant or a control")
    return run_stage(plan, work, parser.parse_args(arguments), parallel=True)
