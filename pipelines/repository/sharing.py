"""What machines share of their clones: git's remote `origin` has commits and experiments, DVC's default remote the
data.

An experiment is finished wherever it is: `origin` knows all that were shared. DVC keeps experiments as git references
refs/exps/BASELINE/NAME; `dvc exp list origin` lists them too.
"""

from collections.abc import Iterable
from pathlib import Path

from pipelines.repository.git import git
from vapi_core.errors import FileError

ORIGIN = "origin"
SHOWN = 3  # files that a message names


def check_remotes(root: Path = Path()) -> None:
    """Raises FileError where git or DVC has no remote, with the command that mends it."""
    from dvc.config import Config

    if ORIGIN not in git(root, "remote").split():
        raise FileError(root, "git has no remote origin, by which machines share.", "Run `git remote add origin URL`.")
    if not Config(str(root / ".dvc")).read()["core"].get("remote"):
        problem = "DVC has no default remote, by which machines share data."
        raise FileError(root / ".dvc/config", problem, "Run `dvc remote add --default NAME URL`, and commit it.")


def check_shareable(root: Path = Path()) -> None:
    """Raises FileError where other machines could not have what is here, with the command that mends it."""
    check_remotes(root)
    if changed := git(root, "diff", "--name-only", "HEAD").split("\n")[:-1]:
        named = ", ".join(changed[:SHOWN]) + (" ..." if len(changed) > SHOWN else "")
        problem = f"there are uncommitted changes, which other machines do not have: {named}."
        raise FileError(root, problem, "Run `git commit -a` and `git push origin HEAD`, or `git stash`.")
    if not git(root, "branch", "--remotes", "--contains", "HEAD").strip():
        raise FileError(root, "origin lacks git's HEAD, on which the sweep builds.", "Run `git push origin HEAD`.")


def fetch_experiments(names: Iterable[str], root: Path = Path()) -> set[str]:
    """Brings those of these experiments here that origin has, and names them: their commits, not their data.

    One of ours of the same name is replaced.

    Raises:
        FileError: origin cannot be asked.
    """
    wanted = set(names)
    listed = (line.split()[1] for line in git(root, "ls-remote", ORIGIN, "refs/exps/*").splitlines())
    found = {ref.rpartition("/")[2]: ref for ref in listed if ref.rpartition("/")[2] in wanted}
    if found:
        git(root, "fetch", "--quiet", "--no-tags", ORIGIN, *(f"+{ref}:{ref}" for ref in found.values()))
    return set(found)


def origin_url(root: Path) -> str:
    """The address of origin for a clone elsewhere on this machine."""
    url = git(root, "remote", "get-url", ORIGIN).strip()
    return str((root / url).resolve()) if (root / url).exists() else url


def push_small_outputs(stages: Iterable[str], root: Path = Path()) -> None:
    """Sends DVC's default remote those outputs of finished stages that git has: metrics and plots.

    DVC's run cache restores a stage with all its outputs or not at all, and `dvc push --run-cache` (3.67) leaves these
    out.
    """
    from dvc.repo import Repo

    wanted, content = set(stages), set()
    with Repo(str(root)) as repo:
        for output in (out for stage in repo.index.stages if stage.addressing in wanted for out in stage.outs):
            if not output.use_cache:
                files = output.get_obj() if output.hash_info.isdir else None
                content |= {output.hash_info, *(digest for _, _, digest in files or ())}
        # what another machine made is not in this cache, and perhaps in none: it came by git
        repo.cloud.push({digest for digest in content if repo.cache.local.exists(digest.value)})
