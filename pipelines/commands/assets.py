"""`python -m pipelines.commands.assets [PROFILE]`: the files that a profile needs, and which of them are missing."""

import argparse
import sys

from pipelines.config.profiles import read_profile
from pipelines.frame.launch import one_message
from pipelines.variants.assets import assets_of, summary, table
from pipelines.variants.loading import check_params, load_params


@one_message
def main(arguments: list[str] | None = None) -> int:
    """1 where something is missing."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.commands.assets", description="Files that a profile needs."
    )
    parser.add_argument("profile", nargs="?", help="name of a file in profiles/; without one, params.yaml")
    options = parser.parse_args(arguments)
    params = load_params() if options.profile is None else check_params(read_profile(options.profile))
    assets = assets_of(params)
    missing = [asset for asset in assets if asset.state == "missing"]
    if assets:
        print(table(assets))
    print(summary(params.profile, missing))
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
