"""What machines share: whether everything is where others find it, and which experiments origin has."""

import subprocess

import pytest

from pipelines.repository.git import experiments, git
from pipelines.repository.sharing import check_shareable, fetch_experiments, origin_url
from vapi_core.errors import FileError


def run(root, *lines):
    for line in lines:
        subprocess.run(line.split(), cwd=root, check=True)


@pytest.fixture
def root(tmp_path):
    """A repository of one commit without remotes, beside an empty one."""
    root = tmp_path / "repository"
    root.mkdir()
    (root / ".dvc").mkdir()
    (root / ".dvc/config").touch()
    run(tmp_path, "git init -q --bare origin.git")
    run(
        root, "git init -q", "git config user.name x", "git config user.email x@y", "git add -A", "git commit -qm first"
    )
    return root


def test_each_thing_that_is_missing_is_told_with_the_command_that_mends_it_and_then_nothing_is(root):
    def missing():
        with pytest.raises(FileError) as told:
            check_shareable(root)
        return str(told.value)

    assert "git remote add origin URL" in missing()
    run(root, "git remote add origin ../origin.git")
    assert "dvc remote add --default NAME URL" in missing()
    (root / ".dvc/config").write_text("[core]\n    remote = store\n")
    told = missing()
    assert "uncommitted changes, which other machines do not have: .dvc/config" in told and "git commit -a" in told
    run(root, "git commit -qam second")
    assert "git push origin HEAD" in missing()
    run(root, "git push -q origin HEAD")
    check_shareable(root)


def test_experiments_that_origin_has_come_here_by_name_in_place_of_ours(root, tmp_path):
    run(root, "git remote add origin ../origin.git", "git push -q origin HEAD")
    head = git(root, "rev-parse", "HEAD").strip()
    theirs = git(root, "commit-tree", "-p", head, "-m", "theirs", "HEAD^{tree}").strip()
    folder = f"refs/exps/{head[:2]}/{head[2:]}"
    for name in ("cell", "other"):
        run(root, f"git push -q origin {theirs}:{folder}/{name}")
    run(root, f"git update-ref {folder}/cell {head}")
    assert fetch_experiments(["cell", "unknown"], root) == {"cell"}
    assert experiments(root) == {"cell": theirs}
    assert origin_url(root) == str(tmp_path / "origin.git")


def test_an_origin_that_cannot_be_asked_is_told(root):
    run(root, "git remote add origin ../nowhere.git")
    with pytest.raises(FileError, match="ls-remote"):
        fetch_experiments(["cell"], root)
