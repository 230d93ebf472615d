"""What git says of a repository, and of DVC's experiments in it."""

import subprocess
from pathlib import Path

from vapi_core.errors import FileError, shortened


def git(root: Path, *arguments: str) -> str:
    """Output of a git command; empty where git has nothing to say, as for a name that does not exist asked for quietly.

    Raises:
        FileError: git is not installed, or refuses; with its own words.
    """
    command = ["git", *arguments]
    try:
        result = subprocess.run(command, cwd=root, capture_output=True, text=True, errors="replace", check=False)
    except FileNotFoundError:
        raise FileError(root, "git, which versions it, cannot be found.", "Install git, or put it on PATH.") from None
    if result.returncode != 0 and (words := result.stderr.strip()):
        raise FileError(root, f"`git {arguments[0]}` fails: {shortened(words)}")
    return result.stdout


def experiments(root: Path = Path(), baseline: str = "*/*") -> dict[str, str]:
    """Name -> commit of DVC's experiments here: git references refs/exps/BASELINE/NAME, of any baseline or of one."""
    pattern = f"refs/exps/{baseline}/*"
    lines = git(root, "for-each-ref", "--format=%(refname:lstrip=4) %(objectname)", pattern).splitlines()
    return {name: commit for name, _, commit in (line.rpartition(" ") for line in lines)}
