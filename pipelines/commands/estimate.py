"""`python -m pipelines.commands.estimate [--profile NAME] [--gpu NAME]`: what a profile needs, before any work."""

import argparse
import sys
from pathlib import Path

from pipelines.config.paths import STAGE_METRICS
from pipelines.config.profiles import read_profile
from pipelines.estimates.estimate import estimate
from pipelines.estimates.pages import comparison, page
from pipelines.estimates.rates import EPYC, GPUS, measure_cpu
from pipelines.frame.launch import one_message
from pipelines.repository.cache import keeps_copies
from pipelines.variants.loading import check_params, load_params


@one_message
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.commands.estimate", description="Time and disk of every stage, before any work."
    )
    parser.add_argument("--profile", help="name of a file in profiles/; without one, params.yaml")
    parser.add_argument("--gpu", choices=("cpu", *GPUS), default="cpu", help="the machine; default: cpu")
    parser.add_argument("--measure", action="store_true", help="measure the CPU's rates here, which takes ten seconds")
    parser.add_argument(
        "--beside",
        nargs="?",
        type=Path,
        const=STAGE_METRICS,
        metavar="FOLDER",
        help="what stages measured of themselves",
    )
    options = parser.parse_args(arguments)
    if options.measure and options.gpu != "cpu":
        parser.error("--measure is of the CPU: --gpu cpu")
    params = load_params() if options.profile is None else check_params(read_profile(options.profile))
    rates = measure_cpu(params.threads) if options.measure else {"cpu": EPYC, **GPUS}[options.gpu]
    rows = estimate(params, rates)
    if options.beside is not None:
        print(comparison(rows, options.beside))
    else:
        print(page(params, rows, rates, keeps_copies()))


if __name__ == "__main__":
    sys.exit(main())
