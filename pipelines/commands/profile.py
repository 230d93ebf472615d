"""Makes a profile the one that runs, by writing it whole into params.yaml."""

from pathlib import Path

from pipelines.config.profiles import compose, profile_names
from vapi_core.files import atomic_path

PARAMS_FILE = Path("params.yaml")


def profile(name: str | None = None) -> None:
    """Writes a profile, a file of profiles/ without .yaml; without a name, lists them.

    Raises:
        FileError: there is no such profile.
    """
    if name is None:
        print("\n".join(profile_names()))
        return
    text = compose(name)
    with atomic_path(PARAMS_FILE) as temporary:
        temporary.write_text(text, encoding="utf-8")
