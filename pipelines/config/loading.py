"""params.yaml, read, typed and checked by every rule: what stages and commands start with."""

from pathlib import Path
from typing import Any

from pipelines.config import rules as config_rules
from pipelines.config import variant_rules
from pipelines.config.params import Params, checked, several
from vapi_core.files import read_yaml

PARAMS_FILE = Path("params.yaml")


def load_params(path: Path = PARAMS_FILE) -> Params:
    """Reads and checks a params file.

    Raises:
        FileError: the file is missing or no YAML.
        ParameterError: names every key that is wrong.
    """
    return check_params(read_yaml(path))


def check_params(content: Any) -> Params:
    """Types a parsed params file and applies the rules between parameters.

    Raises:
        ParameterError: names every key that is wrong.
    """
    params = checked(Params, content)
    problems = config_rules.broken_rules(params)
    if problems:
        raise several(problems)
    problems = variant_rules.broken_rules(params)
    if problems:
        raise several(problems)
    return params
