"""The files that a profile needs from elsewhere, which are missing, and whether the disk holds what is to come."""

import sys

from pipelines.config.assets import assets_of, summary, table
from pipelines.config.loading import check_params, load_params
from pipelines.config.params import Params
from pipelines.config.profiles import read_profile
from pipelines.estimates import space
from pipelines.estimates.sizes import disks
from pipelines.estimates.space import SpaceError, finished, free_bytes, to_come
from pipelines.repository.cache import keeps_copies


def params_of(profile: str | None) -> Params:
    """Those of a file in profiles/; without one, params.yaml."""
    return load_params() if profile is None else check_params(read_profile(profile))


def check(profile: str | None = None, anyway: bool = False) -> int:
    """Lists the files; returns the exit code, 1 where something is missing, or room on the disk.

    Raises:
        SpaceError: the disk does not hold what the stages will write; with `anyway` that is only a warning.
    """
    params = params_of(profile)
    assets = assets_of(params)
    missing = [asset for asset in assets if asset.state == "missing"]
    if assets:
        print(table(assets))
    print(summary(params.profile, missing))
    stages = disks(params)
    needed, free = to_come(stages, finished(stages), keeps_copies()), free_bytes()
    print(f"disk: {needed / 1e9:.3g} GB to come, {free / 1e9:.3g} GB free.")
    try:
        space.check(f"profile {params.profile}", needed, free)
    except SpaceError as error:
        if not anyway:
            raise
        print(f"warning: {error}", file=sys.stderr)
    return 1 if missing else 0
