"""`python -m benchmarks gpu` in its quick form: all parts run here, and what fails is a row of the page."""

import os
import signal
import threading
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks.gpu import parity
from benchmarks.gpu.page import page, target_rows
from benchmarks.gpu.parts import PARTS, measure_part
from benchmarks.gpu.process import Outcome, Skipped, run_alone, run_apart, run_group
from benchmarks.gpu.run import chosen, run_parts
from benchmarks.gpu.shapes import Asked, fits, halves, largest
from tests.own_fixtures import write_generator, write_rotary
from vapi_core.errors import ParameterError
from vapi_core.files import read_json

LONG = 600.0  # seconds: no part of these tests takes so long


def asked(folder: Path, reference: Path | None = None) -> Asked:
    return Asked(True, reference, folder)


# All of it


def test_all_parts_run_on_tiny_models_and_stand_on_the_page(monkeypatch, tmp_path, capsys):
    """The parts of XXL are those of XL with another profile, which the quick form does not read."""
    write_generator(tmp_path / "reference", "some_name")
    names = [part.name for part in PARTS if part.name not in ("step-xxl", "sampling-xxl")]
    options = ["--quick", "--folder", str(tmp_path), "--reference", str(tmp_path / "reference"), "--parts", *names]
    monkeypatch.setattr("sys.argv", ["benchmarks", "gpu", *options])
    assert command.main() == 0, capsys.readouterr().out
    outcomes = read_json(tmp_path / "gpu.json")["parts"]
    assert [(o["part"], o["status"], o["message"]) for o in outcomes] == [(name, "done", "") for name in names]
    of = {o["part"]: o["results"] for o in outcomes}
    assert of["step-xl"]["gradient_difference"] < 1e-3 and of["step-xl"]["reward_difference"] < 1e-4
    assert of["sampling-xl"]["compiled"]["equal_tokens"] == 1.0
    assert {(row["dtype"], row["passed"]) for row in of["parity"]["fixtures"]} == {
        ("float32", True),
        ("bfloat16", True),
    }
    assert (of["drawing-xl"]["drawn"], of["drawing-xl"]["distinct_images"]) == (12, 12)
    assert of["resume-xl"]["states"] == ["2"] and of["resume-xl"]["equal_weights"] and of["resume-xl"]["equal_metrics"]
    assert of["fsdp-xl"]["processes"] == 2 and of["fsdp-xl"]["largest_difference"] < 1e-4
    text = (tmp_path / "gpu.md").read_text()
    assert "Its numbers say nothing" in text and "**missed**" not in text
    assert [part.title for part in PARTS if part.name in names] == [
        line[3:] for line in text.splitlines() if line.startswith("## ") and line not in ("## Targets", "## Parts")
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpu.json", "gpu.md", "reference"]


def test_without_a_gpu_the_command_names_the_quick_form(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmarks", "gpu"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main() == 1
    assert "--quick: torch finds no GPU here" in capsys.readouterr().err


def test_some_parts_run_in_the_order_of_their_value_and_an_unknown_one_is_named():
    assert [part.name for part in chosen(["fsdp-xl", "step-xl"])] == ["step-xl", "fsdp-xl"]
    with pytest.raises(ParameterError, match="there is no step; there are: machine, step-xl"):
        chosen(["step"])


# A part in its own process


def measures_then_fails():
    yield {"eager": 1}
    raise torch.OutOfMemoryError("CUDA out of memory.\nOf the allocated memory ...")


def measures_then_dies():
    yield {"eager": 1}
    print("the last words", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def never_ends():
    threading.Event().wait()
    yield {}


def cannot_run_here():
    raise Skipped("no folder of official numbers")
    yield {}


def test_what_a_part_measured_before_it_failed_or_died_is_kept(tmp_path):
    failed = run_alone("a", measures_then_fails, (), LONG, tmp_path)
    assert (failed.status, failed.results) == ("failed", {"eager": 1})
    assert failed.message == "OutOfMemoryError: CUDA out of memory."
    died = run_alone("a", measures_then_dies, (), LONG, tmp_path)
    assert (died.status, died.results) == ("failed", {"eager": 1})
    assert died.message == "ended by SIGKILL: the last words"


def test_a_part_is_stopped_at_its_limit_and_a_skipped_one_says_why(tmp_path):
    assert run_alone("b", never_ends, (), 0.1, tmp_path).status == "stopped"
    skipped = run_alone("c", cannot_run_here, (), LONG, tmp_path)
    assert (skipped.status, skipped.message) == ("skipped", "no folder of official numbers")


def test_parts_that_the_minutes_do_not_allow_are_told(tmp_path):
    told: list[Outcome] = []
    run_parts(chosen(["machine", "step-xl"]), asked(tmp_path), 0.0, told.append)
    assert [(o.part, o.status) for o in told] == [("machine", "skipped"), ("step-xl", "skipped")]
    assert told[1].message == "the 0 minutes are over; --parts step-xl"


def fails_on_one(device: torch.device) -> None:
    if os.environ["RANK"] == "1":
        raise ValueError("no such layer")
    threading.Event().wait()  # as one that waits for the other


def group_of_two_of_which_one_fails():
    run_group(2, fails_on_one)
    yield {}


def raises() -> None:
    raise ValueError("no such layer")


def apart():
    yield {"code": run_apart(os._exit, 3)}
    run_apart(raises)


def test_a_process_of_a_group_or_apart_that_fails_fails_its_part(tmp_path):
    assert run_alone("d", group_of_two_of_which_one_fails, (), LONG, tmp_path).message == (
        "RuntimeError: process 1: ValueError: no such layer"
    )
    outcome = run_alone("e", apart, (), LONG, tmp_path)
    assert (outcome.results, outcome.message) == ({"code": 3}, "RuntimeError: ValueError: no such layer")


# What is found from memory


def test_the_largest_number_that_fits_is_found_by_halves():
    held = 5

    def take(number: int) -> None:
        if number > held:
            raise torch.OutOfMemoryError

    assert list(halves(12)) == [12, 6, 3, 1]
    assert largest(12, lambda n: fits(lambda: take(n))) == 3
    held = 0
    assert largest(12, lambda n: fits(lambda: take(n))) is None


# Parity


def test_official_numbers_that_are_not_met_fail_the_part_and_stay_on_the_page(tmp_path):
    reference = tmp_path / "reference"
    write_generator(reference, "right")
    write_rotary(reference, "wrong", error=1e-3)
    outcome = run_alone("parity", measure_part, ("parity", asked(tmp_path, reference)), LONG, tmp_path)
    assert (outcome.status, outcome.message) == ("failed", "RuntimeError: 1 of 3 rows are beyond their tolerance")
    text = page(chosen(["parity"]), [outcome], False, "about")
    assert "| wrong | float32 | 1 | freqs_grid3_hd12_cls2 | 0.001 | 1e-06 | **FAIL** |" in text
    assert "| right | bfloat16 | 4 |" in text and "| parity | failed |" in text


def test_a_check_that_raises_fails_in_bfloat16_too(tmp_path):
    path = write_generator(tmp_path, "broken")
    path.write_text(path.read_text().replace('"dim": 32', '"dim": 64'))
    (row,) = parity.check(tmp_path, path.with_suffix(""), [".json", ".safetensors"], torch.bfloat16)
    assert not row["passed"] and "RuntimeError" in row["quantity"]


@pytest.mark.parametrize("reference", [None, Path("nowhere")])
def test_without_a_reference_parity_is_skipped(tmp_path, reference):
    with pytest.raises(Skipped, match="the official numbers are not here"):
        next(parity.measure(asked(tmp_path, reference)))


# The page


def measured(part: str, **results) -> Outcome:
    return Outcome(part, "done", 9.0, "", results)


def test_targets_are_judged_by_the_better_of_eager_and_compiled():
    of = {
        "step-xl": measured("step-xl", eager={"ratio": 4.4}, compiled={"ratio": 5.1}),
        "sampling-xl": measured("sampling-xl", eager={"ratio": 2.6}),  # compiled it crashed
        "recipe-xxl": measured("recipe-xxl", eager={"minutes": 12.0}, compiled={"minutes": 9.5}),
    }
    rows = [tuple(row)[1:] for row in target_rows(of, quick=False)]
    missing = ("not measured", "")
    assert rows == [("5.10 times", "met"), missing, ("2.60 times", "**missed**"), missing, ("9.5 minutes", "met")]
    assert tuple(target_rows(of, quick=True)[0])[2] == "says nothing"


def test_the_page_has_a_row_for_every_part_whatever_became_of_it():
    outcomes = [
        measured("machine", machine={"device": "NVIDIA H100 80GB HBM3", "total_bytes": 80e9}, bytes_per_second=3e12),
        Outcome("step-xl", "failed", 31.0, "OutOfMemoryError: CUDA | out of memory."),
    ]
    text = page(chosen(["machine", "step-xl", "parity"]), outcomes, False, "`the command`")
    assert text.startswith("# NVIDIA H100 80GB HBM3\n\n`the command`\n\ntotal bytes 80 GB.\n")
    assert "| step-xl | failed | 31 | OutOfMemoryError: CUDA \\| out of memory. |" in text
    assert "| parity | not begun |  |  |" in text and "bytes per second: 3000 GB/s" in text
