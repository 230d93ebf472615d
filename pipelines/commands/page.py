"""`python -m pipelines.commands.page`: the report as one file for a browser, reports/report.html.

It needs the image sets of the experiment: `dvc repro report`, or `dvc pull`. It is not committed, since images make it
large.
"""

import argparse
import sys
from pathlib import Path

import torch

from pipelines.commands.geneval import choose_device
from pipelines.config.params import Params
from pipelines.config.paths import GENERATOR, REPORTS
from pipelines.frame.inputs import open_generator, open_split, open_tokenizer
from pipelines.frame.launch import one_message
from pipelines.frame.stage import Stage, StagePlan, UntrackedRun
from pipelines.reporting.html_page import write_page
from pipelines.reporting.tables import TABLES
from pipelines.variants.loading import load_params
from pipelines.variants.training import LentNetworks
from pipelines.variants.variant import SUBJECT, find_variant
from vapi_core.alignment.method import Setting
from vapi_core.alignment.reward import ReconstructionReward, open_perceptual


def open_reward(params: Params, device: torch.device) -> ReconstructionReward:
    """The reward of VA-π as the experiment has it."""
    alignment = find_variant(params, SUBJECT).alignment
    assert alignment is not None
    networks = LentNetworks(Stage(StagePlan("page", None, {}), params, device, UntrackedRun(), ""), alignment)
    generator, tokenizer = open_generator(GENERATOR, device), open_tokenizer(device)
    data = open_split("train", device, params.generator.family)
    setting = Setting(generator, tokenizer, data, networks, alignment.optimization, 0, torch.float32)
    return ReconstructionReward(tokenizer, alignment.config.reward, open_perceptual(alignment.config, setting))


@one_message
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.commands.page",
        description="Writes the report as one HTML file, with a sample browser.",
    )
    parser.add_argument("file", nargs="?", type=Path, default=REPORTS / "report.html", help="what to write")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    options = parser.parse_args(arguments)
    params, device = load_params(), torch.device(choose_device(options.device))
    write_page(options.file, TABLES["report"], params, open_reward(params, device), device)
    print(f"{options.file}: {options.file.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
