"""The report as one file for a browser, reports/report.html: `vapi page`. A sweep as one: `vapi page --sweep NAME`.

They need the image sets of the experiment, or of the cells: `vapi run` or `vapi sweep`, or `dvc pull`. They are not
committed, since images make them large.
"""

from pathlib import Path

import torch

from pipelines.commands.device import choose_device
from pipelines.config.loading import load_params
from pipelines.config.params import Params
from pipelines.config.paths import GENERATOR, REPORTS
from pipelines.config.variant import SUBJECT, find_variant
from pipelines.frame.inputs import open_generator, open_split, open_tokenizer
from pipelines.frame.stage import Stage, StagePlan, UntrackedRun
from pipelines.reporting.html_page import write_page
from pipelines.reporting.tables import TABLES
from pipelines.variants.training import LentNetworks
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


def page(file: Path | None = None, device_name: str = "auto", sweep: str | None = None) -> None:
    """Writes it.

    Args:
        file: where; by default reports/report.html, or beside the figures of the sweep.
        sweep: name of one that has ended here.
    """
    if sweep is not None:
        from pipelines.reporting.grid import write_page_again

        told(write_page_again(sweep, file))
        return
    file = file or REPORTS / "report.html"
    params, device = load_params(), torch.device(choose_device(device_name))
    write_page(file, TABLES["report"], params, open_reward(params, device), device)
    told(file)


def told(file: Path) -> None:
    print(f"{file}: {file.stat().st_size / 1e6:.1f} MB")
