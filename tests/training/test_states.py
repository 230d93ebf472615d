"""Two states of a training lie on disk, and a damaged one costs the steps after the one before it."""

import json
import shutil
import signal
import subprocess
import sys

import pytest
import torch

from tests.processes import run_on
from tests.tiny import tiny_generator
from tests.training.test_loop import COUNT, Killed, config, next_token, run, weights
from vapi_core.errors import FileError
from vapi_core.training.loop import train
from vapi_core.training.states import HISTORY_FILE, TRAINING_FILE, is_whole, states

LONG = {"steps": 8, "checkpoint_every": 2}


@pytest.fixture(scope="module")
def uninterrupted():
    generator = tiny_generator().train()
    return run(generator, config(**LONG)), weights(generator)


@pytest.fixture(scope="module")
def killed_once(tmp_path_factory):
    """What a run that was killed in its eighth step has left."""
    folder = tmp_path_factory.mktemp("killed") / "checkpoint"
    with pytest.raises(Killed):
        run(tiny_generator().train(), config(**LONG), kill_after=7, checkpoint=folder, fingerprint="a")
    return folder


@pytest.fixture
def killed(killed_once, tmp_path):
    return shutil.copytree(killed_once, tmp_path / "checkpoint")


def steps_taken(folder, **options) -> tuple[list[int], list[dict], torch.Tensor]:
    """Which steps a run takes that goes on from a folder, the metrics of all, and the weights at its end."""
    generator, taken, rows = tiny_generator(seed=9).train(), [], []
    if not states(folder):  # begins anew, from the weights that every run begins with
        generator = tiny_generator().train()

    def objective(batch):
        taken.append(batch.step)
        return next_token(generator)(batch)

    settings = {"fingerprint": "a"} | options
    log = lambda step, row: rows.append(row)  # noqa: E731
    train(generator, objective, config(**LONG), count=COUNT, seed=0, log=log, checkpoint=folder, **settings)
    return taken, rows, weights(generator)


def flip(path, place: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)


def test_the_last_two_states_are_kept_each_with_sizes_and_hashes_of_its_files(killed):
    assert states(killed) == {4, 6}
    training = json.loads((killed / "6" / TRAINING_FILE).read_text())
    others = {path.name for path in (killed / "6").iterdir()} - {TRAINING_FILE}
    assert training["files"].keys() == others and HISTORY_FILE in others and len(others) == 3
    assert len(json.loads((killed / "6" / HISTORY_FILE).read_text())) == 6
    assert is_whole(killed / "6", "a") and not is_whole(killed / "6", "b")


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", HISTORY_FILE])
def test_a_flipped_bit_sets_a_state_aside_and_training_goes_on_from_the_one_before(
    killed, uninterrupted, capsys, name, place
):
    flip(killed / "6" / name, place)
    taken, rows, ended = steps_taken(killed)
    assert taken == [4, 5, 6, 7]
    assert rows == uninterrupted[0] and torch.equal(ended, uninterrupted[1])
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and str(killed / "6" / name) in told and "6.damaged" in told and "damaged" in told
    assert (killed / "6.damaged" / name).is_file()


@pytest.mark.parametrize("damage", ["truncated", "missing", "no JSON", "another JSON"])
def test_whatever_the_damage_it_is_found_before_anything_is_read(killed, uninterrupted, damage):
    file = killed / "6" / (TRAINING_FILE if "JSON" in damage else "__0_0.distcp")
    if damage == "missing":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(file.read_bytes()[:-10])
    else:
        file.write_text("{" if damage == "no JSON" else "[1]")
    with pytest.raises(FileError, match=file.name):
        is_whole(killed / "6", "a")
    taken, rows, ended = steps_taken(killed)
    assert taken == [4, 5, 6, 7] and rows == uninterrupted[0] and torch.equal(ended, uninterrupted[1])


def test_without_a_state_that_is_whole_training_starts_anew(killed, uninterrupted, capsys):
    for steps in ("4", "6"):
        flip(killed / steps / "__0_0.distcp", 0.5)
    generator = tiny_generator().train()
    rows = run(generator, config(**LONG), checkpoint=killed, fingerprint="a")
    assert rows == uninterrupted[0] and torch.equal(weights(generator), uninterrupted[1])
    assert capsys.readouterr().err.count("warning") == 2
    assert states(killed) == {4, 6}  # new ones


def test_states_of_another_run_are_ignored_without_a_word_and_go_at_the_next_save(killed, capsys):
    with pytest.raises(Killed):
        run(tiny_generator(), config(steps=8, checkpoint_every=3), kill_after=3, checkpoint=killed, fingerprint="b")
    assert states(killed) == {3} and capsys.readouterr().err == ""


def test_a_kill_while_a_state_is_written_leaves_the_two_before(tmp_path, uninterrupted):
    folder = tmp_path / "checkpoint"
    code = f"""
import os, signal, torch
from pathlib import Path
from tests.tiny import tiny_generator
from tests.training.test_loop import config, run
from vapi_core.training import states
torch.set_num_threads(1)
write = states.write_json
def dying(path, value):
    if len(value) == 6:  # the history of six steps
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, value)
states.write_json = dying
run(tiny_generator().train(), config(steps=8, checkpoint_every=2), checkpoint=Path({str(folder)!r}), fingerprint="a")
"""
    ended = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert states(folder) == {2, 4} and len(list(folder.iterdir())) == 3  # and what it was writing
    taken, rows, _ = steps_taken(folder)
    assert taken == [4, 5, 6, 7] and rows == uninterrupted[0]
    assert {path.name for path in folder.iterdir()} == {"4", "6"}


def of_one_rank(folder) -> list[int]:
    return steps_taken(folder)[0]


def test_several_processes_leave_a_damaged_state_together(killed):
    flip(killed / "6" / "__0_0.distcp", 0.5)
    assert run_on(2, of_one_rank, killed) == [[4, 5, 6, 7], [4, 5, 6, 7]]
