"""Clones of a repository: each for one process at a time, with the repository's cache and remotes."""

import subprocess

import pytest
from dvc.config import Config

from pipelines.repository.clones import free_clone, new_files, start_from, state_of
from pipelines.repository.git import git


@pytest.fixture
def root(tmp_path):
    """A repository of two commits, with a DVC remote whose address is relative."""
    root = tmp_path / "repository"
    root.mkdir()
    for line in ("git init -q", "git config user.name x", "git config user.email x@y", "dvc init -q"):
        subprocess.run(line.split(), cwd=root, check=True)
    (root / ".dvc/config").write_text("[core]\n    remote = store\n['remote \"store\"']\n    url = ../../store\n")
    (root / ".gitignore").write_text("/data\n")
    for number in ("first", "second"):
        (root / "text").write_text(number)
        subprocess.run(["git", "add", "-A"], cwd=root, check=True)
        subprocess.run(["git", "commit", "-qm", number], cwd=root, check=True)
    return root


def test_two_that_need_a_clone_have_two_and_the_next_one_has_one_of_them_again(root, tmp_path):
    with free_clone(root, tmp_path / "clones") as one, free_clone(root, tmp_path / "clones") as other:
        assert (one.name, other.name) == ("0", "1")
    with free_clone(root, tmp_path / "clones") as again:
        assert again == one


def test_a_clone_has_the_files_of_one_commit_on_top_of_another_and_none_that_were_there_before(root, tmp_path):
    first, second = git(root, "rev-parse", "HEAD^").strip(), git(root, "rev-parse", "HEAD").strip()
    with free_clone(root, tmp_path / "clones") as clone:
        for path in ("data/kept/file", "data/else/file", "left"):
            (clone / path).parent.mkdir(parents=True, exist_ok=True)
            (clone / path).write_text("by whoever had it before")
        start_from(clone, first, second, [clone.relative_to(clone) / "data/kept"])
        assert git(clone, "rev-parse", "HEAD").strip() == first and (clone / "text").read_text() == "second"
        assert (clone / "data/kept/file").exists() and not (clone / "data/else").exists()
        (clone / "made").touch()
        assert new_files(clone) == ["made"] and not (clone / "left").exists()


def test_a_clone_has_the_cache_and_the_remotes_of_the_repository(root, tmp_path):
    with free_clone(root, tmp_path / "deep/in/clones") as clone:
        settings = Config(str(clone / ".dvc")).read()
    assert settings["cache"]["dir"] == str(root / ".dvc/cache")
    assert settings["remote"]["store"]["url"] == str(tmp_path / "store") and settings["core"]["remote"] == "store"


def test_a_clone_of_another_repository_is_made_anew(root, tmp_path):
    other = tmp_path / "moved"
    with free_clone(root, tmp_path / "clones") as clone:
        (clone / "left").touch()
    root.rename(other)
    with free_clone(other, tmp_path / "clones") as again:
        assert again == clone and not (again / "left").exists()


def test_the_state_of_a_repository_is_its_head_or_a_commit_that_has_the_changes(root):
    assert state_of(root) == git(root, "rev-parse", "HEAD").strip()
    (root / "text").write_text("changed")
    state = state_of(root)
    assert git(root, "show", f"{state}:text") == "changed" and (root / "text").read_text() == "changed"
    assert git(root, "rev-parse", f"{state}^").strip() == git(root, "rev-parse", "HEAD").strip()
