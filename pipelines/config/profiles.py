"""Profiles: `profiles/base.yaml` has every parameter, `profiles/NAME.yaml` what differs; together they are params.yaml.

A mapping of the profile goes into the base's, key by key; everything else, and the splits of the subset, whose order
says which images they get, takes the place of what is there. A variant or a control that the profile sets to null is
left out. Comments stay, those of the profile before those of the base.
"""

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import YAMLError

from vapi_core.errors import FileError, ParameterError
from vapi_core.files import read_yaml

FOLDER, BASE = Path("profiles"), "base"
WITHOUT = ("variants", "controls")  # a profile may add entries to these, and leave some out
REPLACED = ("subset.splits",)
HEADER = (
    "# Made of profiles/base.yaml and profiles/{name}.yaml by `make profile NAME={name}`, and yours to change:\n"
    "# this file is what runs.\n"
)


def profile_names(root: Path = Path()) -> list[str]:
    """Names of the profiles that are there."""
    return sorted(path.stem for path in (root / FOLDER).glob("*.yaml") if path.stem != BASE)


def profile_path(name: str, root: Path = Path()) -> Path:
    """File of what a profile differs in. Raises ParameterError where there is no such profile."""
    known = profile_names(root)
    if name not in known:
        raise ParameterError("profile", f"there is no profile '{name}'; there are {', '.join(known)}.")
    return root / FOLDER / f"{name}.yaml"


def read_profile(name: str, root: Path = Path()) -> dict[str, Any]:
    """All parameters of a profile, plain.

    Raises:
        ParameterError: there is no such profile, or it names a key that the base has not.
        FileError: a file is no YAML.
    """
    return merge(read_yaml(root / FOLDER / f"{BASE}.yaml"), read_yaml(profile_path(name, root)))


def compose(name: str, root: Path = Path()) -> str:
    """The text of params.yaml for a profile, with comments. Raises as `read_profile`."""
    base, profile = (_read(path) for path in (root / FOLDER / f"{BASE}.yaml", profile_path(name, root)))
    merged = merge(base, profile)
    out = io.StringIO()
    _yaml().dump(merged, out)
    body = out.getvalue()
    return HEADER.format(name=name) + "\n" + tidy(body[body.index("profile:") :])


def tidy(text: str) -> str:
    """YAML with one space before a comment, and one empty line between sections and nowhere else."""
    text = re.sub(r"(?<=\S) {2,}#", " #", text)
    text = re.sub(r"\n{2,}(?= )", "\n", text)
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


def merge(base: Any, profile: Any, where: str = "") -> Any:
    """The base with a profile's values in place; changes the base. `where` is the key under which both stand."""
    for key, value in profile.items():
        name = f"{where}.{key}" if where else str(key)
        if where in WITHOUT and value is None:
            if key not in base:
                raise ParameterError(name, "the base has no such entry, so there is nothing to leave out.")
            del base[key]
        elif name not in REPLACED and isinstance(value, dict) and isinstance(base.get(key), dict):
            merge(base[key], value, name)
        elif key in base or where.startswith(WITHOUT):
            base[key] = value
        else:
            raise ParameterError(name, "there is no such parameter in profiles/base.yaml.")
        _take_comment(base, profile, key)
    return base


def _take_comment(base: Any, profile: Any, key: str) -> None:
    """Lets a comment behind a key of the profile stand for that of the base."""
    if isinstance(profile, CommentedMap) and "#" in str(profile.ca.items.get(key)) and key in base:
        base.ca.items[key] = profile.ca.items[key]


def _yaml() -> YAML:
    yaml = YAML()
    yaml.width = 120
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.representer.add_representer(
        type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    return yaml


def _read(path: Path) -> Any:
    try:
        return _yaml().load(path.read_text(encoding="utf-8"))
    except (YAMLError, UnicodeDecodeError) as error:
        raise FileError(path, f"not valid YAML: {error}") from None


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of what two parameter sets do not share."""
    for key in {**old, **new}:
        name = f"{prefix}{key}"
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from differences(a, b, f"{name}.")
        elif a != b:
            yield name
