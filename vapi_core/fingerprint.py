"""Identity of what is kept between runs: states of a training, unfinished image sets, features of images.

What code made is worth keeping as long as that code, the libraries under it, and all that went in are the same.
"""

import hashlib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

CODE = Path(__file__).parent  # the package
LIBRARIES = ("torch", "numpy", "timm", "torch-fidelity", "transformers", "open-clip-torch")
REWARDS = ("classifier.py", "clip.py", "features.py", "preference.py")  # of `scoring`: what also rewards in a training
EXTRACTION = ("images.py", "scoring/classifier.py", "scoring/features.py")  # what features come from
STATISTICS = ("scoring/fidelity.py",)


def fingerprint(*facts: str, code: Iterable[Path], files: Iterable[Path] = ()) -> str:
    """Hex sha256.

    Args:
        facts: what else a result depends on, e.g. settings and hashes.
        code: source files, of `training_code` or `code_of`.
        files: others, by their bytes.
    """
    digest = hashlib.sha256(repr((facts, [(name, _version(name)) for name in LIBRARIES])).encode())
    for path in (*code, *files):
        content = path.read_bytes()
        digest.update(f"{len(content)} ".encode())
        digest.update(content)
    return digest.hexdigest()


def training_code() -> list[Path]:
    """All that a training or a sampling comes from: the package without what only scores."""
    scoring = CODE / "scoring"
    return [path for path in sorted(CODE.rglob("*.py")) if path.parent != scoring or path.name in REWARDS]


def code_of(names: Iterable[str]) -> list[Path]:
    """Source files by their paths in the package."""
    return [CODE / name for name in names]


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return ""
