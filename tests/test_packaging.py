"""What each way to install the project brings is enough for what it is said to do."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
LOCKED = ("geneval", "lab", "dev")  # DVC's remotes are each user's choice
MODULES = {"pillow": "PIL", "pyyaml": "yaml"}  # where a package's module has another name
LAB_ALONE = """
import sys
import pipelines.commands.{module}
beyond = {{"dvc", "mlflow", "prefect", "pandas", "matplotlib", "psutil", "timm", "datasets", "sklearn", "skimage"}}
assert not beyond & set(sys.modules), beyond & set(sys.modules)
"""


def modules(requirements: list[str]) -> set[str]:
    names = [Requirement(text).name.lower() for text in requirements]
    return {MODULES.get(name, name.replace("-", "_")) for name in names}


def imported_at_once(path: Path) -> set[str]:
    """Packages that a module imports when it is imported, not in a function of it."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    names = [alias.name for node in body if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in body if isinstance(node, ast.ImportFrom)]
    return {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names)


@pytest.mark.parametrize("folder", ["vapi_core", "pipelines/cli"])
def test_the_science_and_the_help_need_the_first_dependencies_only(folder):
    own = {"vapi_core", "pipelines"}
    needed = set().union(*map(imported_at_once, Path(folder).rglob("*.py"))) - own
    assert needed and needed <= modules(PROJECT["dependencies"])


@pytest.mark.parametrize("module", ["geneval", "preference"])
def test_scoring_a_folder_needs_nothing_of_the_lab(module):
    program = LAB_ALONE.format(module=module)
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr


def test_the_lock_file_has_what_the_lab_asks_for_and_what_installs_the_project():
    lines = Path("requirements.lock").read_text(encoding="utf-8").splitlines()
    locked = {line.partition("==")[0] for line in lines if "==" in line and not line.startswith((" ", "#"))}
    asked = [*PROJECT["dependencies"], *(text for extra in LOCKED for text in EXTRAS[extra])]
    names = {canonicalize_name(Requirement(text).name) for text in asked} - {PROJECT["name"]}
    assert names <= locked and "setuptools" in locked
