import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.damage import check_every_flip_is_named
from vapi_core.errors import FileError
from vapi_core.files import (
    atomic_path,
    link_tree,
    parse_json,
    read_checked_json,
    read_json,
    read_text,
    read_texts,
    read_yaml,
    remove_leftovers_below,
    remove_whole,
    require_sha256,
    require_utf8_name,
    sha256_file,
    split_lines,
    write_checked_json,
    write_json,
)


def test_a_file_appears_only_when_the_block_has_ended(tmp_path):
    path = tmp_path / "new" / "folder" / "out.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists() and temporary.parent == path.parent
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_on_an_error_the_old_file_stays_and_nothing_else(tmp_path):
    path = tmp_path / "out.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_path(path) as temporary:
        temporary.write_text("half of the n")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_on_an_error_before_anything_was_written_nothing_is_there(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "out.txt"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "out"
    path.mkdir()
    (path / "stale").write_text("old")
    with atomic_path(path) as temporary:
        temporary.mkdir()
        (temporary / "fresh").write_text("new")
        assert [p.name for p in path.iterdir()] == ["stale"]
    assert [p.name for p in path.iterdir()] == ["fresh"]
    assert list(tmp_path.iterdir()) == [path]


def test_on_an_error_the_old_folder_stays_and_nothing_else(tmp_path):
    path = tmp_path / "out"
    path.mkdir()
    (path / "kept").write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_path(path) as temporary:
        temporary.mkdir()
        (temporary / "half").write_text("n")
        raise ZeroDivisionError
    assert [p.name for p in path.iterdir()] == ["kept"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_process_that_is_killed_half_way_leaves_the_old_file(tmp_path):
    path = tmp_path / "out.txt"
    path.write_text("old")
    code = f"""
import os, signal
from vapi_core.files import atomic_path
with atomic_path({str(path)!r}) as temporary:
    with open(temporary, "w") as file:
        file.write("half of the n")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", code])
    assert killed.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    left = [p for p in tmp_path.iterdir() if p != path]
    assert all(p.name.startswith(".out.txt.") and p.name.endswith(".tmp") for p in left) and left
    write_json(path, "next time")  # what the killed one left is in nobody's way
    assert read_json(path) == "next time"


def test_two_processes_write_to_different_temporaries(tmp_path, monkeypatch):
    with atomic_path(tmp_path / "out") as ours:
        monkeypatch.setattr(os, "getpid", lambda: 1)
        with atomic_path(tmp_path / "out") as theirs:
            assert ours != theirs
            theirs.write_text("theirs")
        ours.write_text("ours")
    assert (tmp_path / "out").read_text() == "ours"


def test_json_is_read_as_it_was_written_and_equal_values_give_equal_bytes(tmp_path):
    value = {"ξ": 0.5, "a": [1, None, True], "later": "first"}
    for name in ("a", "b"):
        write_json(tmp_path / name, value)
    assert read_json(tmp_path / "a") == value
    assert list(read_json(tmp_path / "a")) == ["ξ", "a", "later"]
    assert sha256_file(tmp_path / "a") == sha256_file(tmp_path / "b")


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe\x00"])
def test_damaged_json_is_named_with_what_makes_it_anew(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(FileError, match=r"x\.json: the file is damaged .* Run: dvc repro subset"):
        read_json(path, "Run: dvc repro subset")


def test_missing_json_is_named_with_what_makes_it_anew(tmp_path):
    with pytest.raises(FileError, match=r"x\.json: the file is missing\. Run: dvc repro subset"):
        read_json(tmp_path / "x.json", "Run: dvc repro subset")


def test_the_hash_is_that_of_sha256sum(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize("text", ["1e-5", "1.0e-5", "1E-05", "0.00001"])
def test_yaml_numbers_are_read_as_dvc_writes_them(tmp_path, text):
    (tmp_path / "params.yaml").write_text(f"rate: {text}")
    assert read_yaml(tmp_path / "params.yaml") == {"rate": 1e-5}


# What killed processes leave


def dead_process() -> int:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid


def test_what_a_dead_process_left_of_a_path_goes_when_the_path_is_written_again(tmp_path):
    dead, alive = dead_process(), os.getppid()
    for name in (f".out.txt.{dead}.tmp", f".out.txt.{alive}.tmp", f".other.txt.{dead}.tmp", f"out.txt.{dead}.tmp"):
        (tmp_path / name).write_text("left")
    with atomic_path(tmp_path / "out.txt") as temporary:
        temporary.write_text("whole")
    assert {path.name for path in tmp_path.iterdir()} == {
        "out.txt",
        f".out.txt.{alive}.tmp",  # its process may be at it
        f".other.txt.{dead}.tmp",  # of another path
        f"out.txt.{dead}.tmp",  # no temporary of ours
    }


def test_what_a_process_of_the_same_number_left_is_not_taken_for_our_own(tmp_path):
    left = tmp_path / f".out.{os.getpid()}.tmp"
    left.mkdir()
    (left / "stale").write_text("left")
    with atomic_path(tmp_path / "out") as temporary:
        temporary.mkdir()
        (temporary / "fresh").write_text("new")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["fresh"]


def test_leftovers_are_removed_wherever_they_lie_below_a_folder_and_nothing_else(tmp_path):
    dead, alive = dead_process(), os.getppid()
    deep = tmp_path / "checkpoints" / "align-k"
    (deep / f".50.{dead}.tmp" / "folder").mkdir(parents=True)
    (deep / f".75.{alive}.tmp").mkdir()
    (deep / "50").mkdir()
    for name in (f".reconstructions.npy.{dead}.tmp", ".name.tmp", ".x.99999999999999999999.tmp", "kept.npy"):
        (tmp_path / name).write_text("")
    remove_leftovers_below(tmp_path)
    assert {path.name for path in deep.iterdir()} == {f".75.{alive}.tmp", "50"}
    assert {path.name for path in tmp_path.iterdir()} == {
        "checkpoints",
        ".name.tmp",
        ".x.99999999999999999999.tmp",
        "kept.npy",
    }
    remove_leftovers_below(tmp_path / "nowhere")


def test_a_folder_is_copied_by_links_and_whole_where_there_are_none(tmp_path, monkeypatch):
    (tmp_path / "source" / "deep").mkdir(parents=True)
    (tmp_path / "source" / "deep" / "file").write_text("content")
    link_tree(tmp_path / "source", tmp_path / "linked")

    def no_links(*paths):
        raise OSError("Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_links)
    link_tree(tmp_path / "source", tmp_path / "copied")
    source = (tmp_path / "source" / "deep" / "file").stat()
    for name, same in (("linked", True), ("copied", False)):
        copy = tmp_path / name / "deep" / "file"
        assert copy.read_text() == "content" and (copy.stat().st_ino == source.st_ino) == same
    shutil.rmtree(tmp_path / "source")
    assert (tmp_path / "linked" / "deep" / "file").read_text() == "content"


def test_a_folder_that_is_removed_is_gone_at_once_under_its_name(tmp_path, monkeypatch):
    folder = tmp_path / "checkpoint"
    (folder / "6").mkdir(parents=True)
    left = []
    monkeypatch.setattr(shutil, "rmtree", lambda path: left.append((folder.exists(), path.name)))
    remove_whole(folder)
    remove_whole(folder)  # there is none any more
    assert left == [(False, f".checkpoint.{os.getpid()}.tmp")]


def test_lines_end_with_a_newline_and_with_nothing_else():
    assert split_lines("a\nb\r\n\nd") == ["a", "b", "", "d"] and split_lines("a\n") == ["a"] and split_lines("") == []
    for inside in ("\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"):
        assert split_lines(f"a{inside}b\nc\n") == [f"a{inside}b", "c"]


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path):
    (tmp_path / "x.json").write_bytes(b"\xef\xbb\xbf[1]")
    assert read_text(tmp_path / "x.json") == "[1]" and read_json(tmp_path / "x.json") == [1]
    assert parse_json(b"\xef\xbb\xbf[1]") == [1]


def test_text_that_is_not_utf8_is_named_with_its_line(tmp_path):
    (tmp_path / "x.txt").write_bytes("one\ntwo\ncafé\n".encode("latin-1"))
    with pytest.raises(FileError, match=r"x\.txt: the file is damaged \(line 3 is not UTF-8.*Save it as UTF-8"):
        read_text(tmp_path / "x.txt")


@pytest.mark.parametrize("read", [read_text, read_json, read_checked_json])
def test_a_pipe_or_a_folder_is_refused_and_not_waited_for(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(FileError, match=f"{name}: this is no file, but a folder, a pipe or a device"):
            read(tmp_path / name)


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 100_000])
def test_json_that_is_nested_too_deeply_is_damaged(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    for read in (read_json, read_checked_json):
        with pytest.raises(FileError, match=r"x\.json: the file is damaged \(it is nested too deeply\)\. Run: dvc"):
            read(tmp_path / "x.json", "Run: dvc")


@pytest.mark.parametrize("text", [r'["a \ud83d cat"]', r'{"\uDE00": 1}', r'[{"a": ["\udcff"]}]'])
def test_half_a_character_is_refused_for_no_file_could_hold_it(text):
    with pytest.raises(ValueError, match="half of a character"):
        parse_json(text)


def test_a_character_that_is_escaped_in_two_halves_is_whole():
    assert parse_json(r'["\ud83d\ude00", "\\ud83d"]') == ["\N{GRINNING FACE}", r"\ud83d"]


def test_whatever_byte_of_a_checked_file_flips_it_is_noticed(tmp_path):
    path, value = tmp_path / "x.json", {"kind": "subset", "ξ": [0.5, 1, None], "items": [{"caption": "a cat"}]}
    write_checked_json(path, value)
    assert read_checked_json(path) == value
    check_every_flip_is_named(path, lambda: read_checked_json(path), flips=1000)
    for other in (value, value | {"checksum": "0" * 64}, [value]):
        write_json(path, other)
        with pytest.raises(FileError, match=r"x\.json: .*its checksum is not that of its content"):
            read_checked_json(path)


@pytest.mark.parametrize("content", ["[]", "5", "{}", '{"key": null}', '{"key": ["a"]}'])
def test_an_entry_that_is_missing_or_no_text_is_named(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(FileError, match=r"run\.json: the file is damaged: the entry 'key' .*Run: dvc repro"):
        read_texts(tmp_path / "run.json", ["key"], "Run: dvc repro")
    (tmp_path / "run.json").write_text('{"key": "a"}')
    assert read_texts(tmp_path / "run.json", ["key"]) == {"key": "a"}


def test_a_file_is_hashed_once_and_again_when_it_has_changed(tmp_path, monkeypatch):
    path = tmp_path / "rows.npy"
    path.write_bytes(b"abc")
    sha256 = sha256_file(path)
    os.utime(path, (0, 0))
    monkeypatch.setattr("vapi_core.files.SETTLED", 0.0)  # else a file that changed this second is hashed each time
    require_sha256(path, sha256)
    with monkeypatch.context() as patch:
        patch.setattr("vapi_core.files.sha256_file", lambda path: pytest.fail("hashed twice"))
        require_sha256(path, sha256)
    path.write_bytes(b"abd")
    with pytest.raises(FileError, match=r"rows\.npy: the file is damaged: its sha256"):
        require_sha256(path, sha256, "")


def test_a_name_that_is_not_utf8_is_shown_with_its_bytes(tmp_path):
    require_utf8_name("café", tmp_path)
    with pytest.raises(FileError, match=r"the name caf\\xe9 in it is not UTF-8"):
        require_utf8_name(os.fsdecode(b"caf\xe9"), tmp_path)


FULL_DISK = Path("/dev/full")  # Linux: every write to it finds the disk full


@pytest.mark.skipif(not FULL_DISK.exists(), reason="this system has no disk that is always full")
@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_text("x" * 100_000),
        lambda path: np.save(path.open("wb"), np.zeros(100_000)),
        lambda path: np.savez(path.open("wb"), zeros=np.zeros(100_000)),
        lambda path: torch.save(torch.zeros(100_000), path),
    ],
)
def test_a_full_disk_is_told_with_the_name_of_the_file_that_was_to_be_written(tmp_path, write):
    path = tmp_path / "out"
    with (
        pytest.raises(FileError, match=r"out: the disk is full\. Free some space") as told,
        atomic_path(path) as temporary,
    ):
        temporary.symlink_to(FULL_DISK)
        write(temporary)
    assert told.value.path == path and list(tmp_path.iterdir()) == []


@contextmanager
def unprivileged():
    """Of root, who may write anywhere, makes nobody."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_folder_that_may_not_be_written_is_told_with_the_name_of_the_file(tmp_path):
    tmp_path.chmod(0o555)
    with unprivileged(), pytest.raises(FileError, match=rf"{tmp_path.name}.*: permission denied\. Change the perm"):
        write_json(tmp_path / "out.json", 1)
    tmp_path.chmod(0o755)


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "reports").write_text("")
    with pytest.raises(FileError, match=r"reports: a file is in the place of this folder"):
        write_json(tmp_path / "reports" / "out.json", 1)
    with pytest.raises(FileError, match=r"stages: a part of this path is a file"):
        write_json(tmp_path / "reports" / "stages" / "out.json", 1)


def test_trouble_with_another_file_is_not_told_as_trouble_with_the_one_that_is_written(tmp_path):
    (tmp_path / "other").mkdir()
    with pytest.raises(IsADirectoryError), atomic_path(tmp_path / "out") as temporary:
        temporary.write_bytes((tmp_path / "other").read_bytes())


@pytest.mark.parametrize("mark", ["<<<<<<< HEAD", ">>>>>>> other"])
def test_marks_of_a_conflict_are_named_with_their_line(tmp_path, mark):
    (tmp_path / "params.yaml").write_text(f"profile: mnist\n{mark}\nthreads: 2\n")
    with pytest.raises(FileError, match=r"params\.yaml: line 2 is git's mark of a conflict"):
        read_yaml(tmp_path / "params.yaml")


def test_a_pipe_is_not_replaced_by_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileError, match="pipe: this is a device or a pipe"):
        write_json(tmp_path / "pipe", 1)
    assert (tmp_path / "pipe").is_fifo()


def test_a_key_that_stands_twice_is_named_with_its_line(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("align:\n  steps: 1\n  seeds: [1]\n  steps: 2\n")
    with pytest.raises(FileError, match=r"params\.yaml: not valid YAML: the key 'steps' stands twice(.|\n)*line 4"):
        read_yaml(path)
    path.write_text("a: {steps: 1}\nb: {steps: 2}\n")
    assert read_yaml(path) == {"a": {"steps": 1}, "b": {"steps": 2}}


def test_yaml_that_is_nested_too_deeply_is_told(tmp_path):
    (tmp_path / "params.yaml").write_text("[" * 100_000)
    with pytest.raises(FileError, match=r"params\.yaml: not valid YAML: it is nested too deeply"):
        read_yaml(tmp_path / "params.yaml")
