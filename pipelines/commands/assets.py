"""`python -m pipelines.commands.assets [PROFILE]`: the files that a profile needs, which of them are missing, and whether the
disk holds what its stages will write."""

import argparse
import sys

from pipelines.config.profiles import read_profile
from pipelines.estimates.sizes import disks
from pipelines.estimates.space import SpaceError, check, finished, free_bytes, to_come
from pipelines.frame.launch import one_message
from pipelines.repository.cache import keeps_copies
from pipelines.variants.assets import assets_of, summary, table
from pipelines.variants.loading import check_params, load_params


@one_message
def main(arguments: list[str] | None = None) -> int:
    """1 where something is missing, or room on the disk."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.commands.assets", description="Files that a profile needs."
    )
    parser.add_argument("profile", nargs="?", help="name of a file in profiles/; without one, params.yaml")
    parser.add_argument("--anyway", action="store_true", help="say how full the disk will be, and do not mind")
    options = parser.parse_args(arguments)
    params = load_params() if options.profile is None else check_params(read_profile(options.profile))
    assets = assets_of(params)
    missing = [asset for asset in assets if asset.state == "missing"]
    if assets:
        print(table(assets))
    print(summary(params.profile, missing))
    stages = disks(params)
    needed, free = to_come(stages, finished(stages), keeps_copies()), free_bytes()
    print(f"disk: {needed / 1e9:.3g} GB to come, {free / 1e9:.3g} GB free.")
    try:
        check(f"profile {params.profile}", needed, free)
    except SpaceError as error:
        if not options.anyway:
            raise
        print(f"warning: {error}", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
