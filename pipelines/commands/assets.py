"""The files that a profile needs from elsewhere: which are missing."""

from pipelines.config.params import Params
from pipelines.config.profiles import read_profile
from pipelines.variants.assets import assets_of, summary, table
from pipelines.variants.loading import check_params, load_params


def params_of(profile: str | None) -> Params:
    """Those of a file in profiles/; without one, params.yaml."""
    return load_params() if profile is None else check_params(read_profile(profile))


def check(profile: str | None = None) -> int:
    """Lists the files; returns the exit code, 1 where something is missing."""
    params = params_of(profile)
    assets = assets_of(params)
    missing = [asset for asset in assets if asset.state == "missing"]
    if assets:
        print(table(assets))
    print(summary(params.profile, missing))
    return 1 if missing else 0
