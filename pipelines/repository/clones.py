"""Clones of a repository in which its experiments run, each with files of its own, all with one DVC cache.

A clone is made once and used again, by one process at a time. It has git's objects and DVC's cache from the repository,
so that making one copies nothing, and what a stage finished there is in the cache for all. Whoever has a clone has
locked its folder; the lock ends with the process, however that came.
"""

import fcntl
import itertools
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.processes import working_directories
from pipelines.repository.git import git

LINKS = (
    "hardlink,symlink"  # of DVC's cache, unless the repository's config names others: a copy is slow and takes space
)
OWN = ("/.dvc/config.local", "/.dvc/tmp")  # of a clone, never of a commit


@contextmanager
def free_clone(root: Path, folder: Path) -> Iterator[Path]:
    """A clone of `root` below `folder` that no process has, made if there is none."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in itertools.count():
        path = folder / str(number)
        with (folder / f"{number}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            if any(place.is_relative_to(path.resolve()) for place in working_directories()):
                continue  # a stage whose DVC was killed, and which is about to end
            _make(root, path)
            yield path
            return


def _make(root: Path, path: Path) -> None:
    """Makes the clone unless it is there; the repository's DVC settings may have changed since."""
    from dvc.config import Config

    origin = str(root.resolve())
    if not (path / ".git/HEAD").is_file() or git(path, "config", "remote.origin.url").strip() != origin:
        shutil.rmtree(path, ignore_errors=True)  # cut as it was made, or another repository's
        git(root, "clone", "--quiet", "--shared", "--no-checkout", origin, str(path.resolve()))
    (path / ".git/info/exclude").write_text("".join(f"{name}\n" for name in OWN))
    (path / ".git/index.lock").unlink(missing_ok=True)  # of a git that was killed
    (path / ".dvc").mkdir(exist_ok=True)
    settings = Config(str(root / ".dvc")).read()
    settings["cache"] = {"type": LINKS, "dir": str(root.resolve() / ".dvc/cache")} | settings["cache"]
    with Config(str(path / ".dvc")).edit("local", validate=False) as local:
        local |= settings


def start_from(path: Path, baseline: str, base: str, kept: Iterable[Path]) -> None:
    """Makes the files of a clone those of the commit `base`, on top of the commit `baseline`; nothing else stays.

    Args:
        kept: folders whose files stay where git ignores them: DVC makes them those of `base`, quicker than from
        nothing.
    """
    git(path, "update-ref", "--no-deref", "HEAD", baseline)
    git(path, "read-tree", "--reset", "-u", base)
    stays = [f"--exclude={name}" for name in (*OWN, *(f"/{folder}" for folder in kept))]
    git(path, "clean", "-ffdxq", *stays)


def new_files(path: Path) -> list[str]:
    """Files that git neither knows nor ignores."""
    return git(path, "ls-files", "--others", "--exclude-standard", "-z").split("\0")[:-1]


def state_of(root: Path) -> str:
    """A commit of the files as they are, uncommitted changes of known ones included; HEAD where there are none."""
    return git(root, "stash", "create").strip() or git(root, "rev-parse", "HEAD").strip()
