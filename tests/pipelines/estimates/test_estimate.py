"""Estimates come within 30 % of what stages of the default profile measured on two cores of an AMD EPYC."""

from pathlib import Path

import pytest

from pipelines.commands import estimate as command
from pipelines.config.params import Params, checked
from pipelines.config.profiles import read_profile
from pipelines.config.variant import find_variant
from pipelines.estimates.costs import costs_of
from pipelines.estimates.estimate import estimate, memory_peaks, seconds, sweep_seconds
from pipelines.estimates.rates import EPYC, GPUS, measure_cpu
from pipelines.estimates.sizes import Disk
from pipelines.reporting.estimates import disk_bytes, duration, page, sweep_line
from vapi_core.errors import ParameterError

ROOT = Path(__file__).parents[3]
# seconds, of reports/stages at commit b90f14a, of stages that had the machine to themselves
MEASURED = {"tokenizer": 88.2, "generator": 42.8, "align@ste": 65.1, "sample@ste": 40.0, "score@ste": 9.9}


@pytest.fixture(scope="module")
def params():
    content = read_profile("mnist", ROOT)
    content |= {"variants": {"ste": content["variants"]["ste"]}, "controls": {}, "tables": []}
    return checked(Params, content)


@pytest.fixture(scope="module")
def rows(params):
    return estimate(params, EPYC)


def test_every_stage_of_a_variant_is_estimated_within_30_percent(rows):
    ratios = {row.stage: row.seconds / MEASURED[row.stage] for row in rows if row.stage in MEASURED}
    assert ratios.keys() == MEASURED.keys()
    assert all(1 / 1.3 < ratio < 1.3 for ratio in ratios.values()), ratios


def test_a_cell_of_a_sweep_takes_what_its_three_stages_take(params, rows):
    own = sum(row.seconds for row in rows if row.stage.endswith("@ste"))
    assert sweep_seconds(params, [find_variant(params, "ste")] * 2, EPYC) == pytest.approx([own, own])


def test_a_sweep_takes_as_many_times_as_long_as_it_has_cells_for_each_at_a_time():
    assert sweep_line([60.0] * 10, 1, EPYC).startswith("about 10 min beside what the cells share: 10 x 60 s (cpu")
    assert sweep_line([60.0] * 10, 5, EPYC).startswith("about 2 min")
    assert sweep_line([60.0], 5, EPYC).startswith("about 60 s")


def test_a_page_tells_time_and_disk_and_that_nothing_was_measured_on_a_gpu(params, rows):
    text = page(params, rows, GPUS["h100"], copies=True)
    assert "| align@ste |" in text and "not measured" in text and "second copy" in text


def test_peaks_of_memory_are_of_the_stages_that_align_and_draw(params, rows):
    peaks = memory_peaks(params, None)
    assert peaks.keys() == {"align@ste", "sample@ste"} and min(peaks.values()) > 1e7
    assert f" {peaks['align@ste'] / 1e9:.3g} GB |" in page(params, rows, EPYC, False, peaks)


def test_links_into_the_cache_save_one_copy_of_every_output(rows):
    output = sum(row.disk.output for row in rows)
    assert disk_bytes(rows, copies=True) - disk_bytes(rows, copies=False) == pytest.approx(output)


def test_processes_share_the_alignment_and_not_the_scoring(params):
    several = params.model_copy(update={"launch": params.launch.model_copy(update={"processes": 2})})
    (align, _, score), (half, _, same) = (
        [seconds(cost, Disk(cost.stage, 0.0), p, EPYC) for cost in costs_of(p, find_variant(p, "ste"), 16e9)]
        for p in (params, several)
    )
    assert half == pytest.approx(align / 2, rel=0.1)
    assert score == same


def test_a_machine_measures_its_own_rates():
    rates = measure_cpu(1)
    assert rates.threads == 1 and "measured" in rates.origin
    assert 1e8 < rates.flops["float32"] < 1e14 and 1e-7 < rates.overhead < 1e-1


@pytest.mark.parametrize(("length", "text"), [(0.26, "0.3 s"), (42, "42 s"), (150, "2.5 min"), (9000, "2.5 h")])
def test_durations_are_short(length, text):
    assert duration(length) == text


def test_the_command_refuses_what_it_does_not_know():
    with pytest.raises(ParameterError, match="there is no profile 'no-such'"):
        command.estimate("no-such")
    with pytest.raises(ParameterError, match=r"--gpu: there is no 'abacus'; there are cpu, h100, "):
        command.estimate(gpu="abacus")
    with pytest.raises(ParameterError, match="--measure"):
        command.estimate(gpu="h100", measure=True)
