"""`python -m pipelines.commands.profile NAME`: makes a profile the one that runs, by writing it whole into params.yaml."""

import argparse
import sys
from pathlib import Path

from pipelines.config.profiles import compose, profile_names
from pipelines.frame.launch import one_message
from vapi_core.files import atomic_path

PARAMS_FILE = Path("params.yaml")


@one_message
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pipelines.commands.profile", description=__doc__)
    parser.add_argument("name", nargs="?", help="a file of profiles/, without .yaml; without one, they are listed")
    options = parser.parse_args(arguments)
    if options.name is None:
        print("\n".join(profile_names()))
        return 0
    text = compose(options.name)
    with atomic_path(PARAMS_FILE) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
