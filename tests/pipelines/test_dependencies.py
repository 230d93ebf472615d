"""dvc.yaml names, for every stage, the code that its results come from; else a change of it would leave stale results."""

import ast
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from vapi_core.fingerprint import EXTRACTION, REWARDS, STATISTICS

STAGES = yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"]
# what types, tracks, shows and saves; results do not come from it
FRAME = {
    Path("pipelines", f"{name}.py")
    for name in (
        "assets",
        "figures",
        "geneval_command",
        "journal",
        "launch",
        "memory_advice",
        "mlflow_runs",
        "params",
        "paths",
        "preference_command",
        "progress",
        "rules",
        "stage",
        "tracking",
    )
} | {Path("vapi_core/errors.py"), Path("vapi_core/files.py"), Path("vapi_core/fingerprint.py")}


# reached from the modules of features and statistics, and no part of what these are
OF_NO_FEATURE = {Path("vapi_core", name) for name in ("models/weights.py", "randomness.py")}


class Module(NamedTuple):
    definitions: dict[str, ast.stmt]  # of its top level
    imports: dict[str, tuple[Path, str | None]]  # local name -> file, and the name there; None: the module itself


def file_of(module: str) -> Path | None:
    path = Path(*module.split(".")).with_suffix(".py")
    return path if path.is_file() else None


@cache
def read(path: Path) -> Module:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    definitions: dict[str, ast.stmt] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            definitions[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
            definitions |= dict.fromkeys(names, node)
    imports: dict[str, tuple[Path, str | None]] = {}
    for node in ast.walk(tree):  # those inside functions too
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole, part = file_of(f"{node.module}.{alias.name}"), file_of(node.module)
                if whole or part:
                    imports[alias.asname or alias.name] = (whole, None) if whole else (part, alias.name)
    return Module(definitions, imports)


class Names(ast.NodeVisitor):
    """The names that a definition uses when it runs, each with the attribute that is taken of it; no annotations."""

    def __init__(self):
        self.used: set[tuple[str, str | None]] = set()

    def visit_Name(self, node):
        self.used.add((node.id, None))

    def visit_Attribute(self, node):
        if isinstance(node.value, ast.Name):
            self.used.add((node.value.id, node.attr))
        self.generic_visit(node)

    def visit_FunctionDef(self, node):
        for part in (*node.decorator_list, *node.args.defaults, *filter(None, node.args.kw_defaults), *node.body):
            self.visit(part)

    def visit_AnnAssign(self, node):
        if node.value:
            self.visit(node.value)


def reached(stage: Path) -> set[Path]:
    """Files whose functions and classes a stage's module uses, directly or through others; not the frame."""
    files, seen = set(), set()
    todo = [(stage, name) for name in read(stage).definitions]
    while todo:
        path, name = todo.pop()
        if (path, name) in seen or path in FRAME:
            continue
        seen.add((path, name))
        module = read(path)
        definition = module.definitions.get(name)
        if definition is None:
            continue
        if isinstance(definition, ast.FunctionDef | ast.ClassDef):  # a lone constant is a name of something
            files.add(path)
        names = Names()
        names.visit(definition)
        for used, attribute in names.used:
            if used in module.imports:
                target, there = module.imports[used]
                todo += [(target, part) for part in (there or attribute,) if part]
            else:
                todo.append((path, used))
    return files


def missing(stage: dict) -> list[str]:
    """What a stage uses and does not depend on."""
    module = file_of(stage["cmd"].split()[2])
    dependencies = {Path(path) for path in stage["deps"]}
    return sorted(str(file) for file in reached(module) if not dependencies & {file, *file.parents})


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_the_code_that_its_results_come_from(name):
    assert missing(STAGES[name]) == []


def test_the_fingerprints_of_what_is_kept_between_runs_hold_the_code_that_it_comes_from():
    package = Path("vapi_core")
    rewards = {Path(path).name for path in STAGES["align"]["deps"] if path.startswith("vapi_core/scoring/")}
    assert rewards == set(REWARDS)
    for names, module in ((EXTRACTION, "features.py"), (STATISTICS, "fidelity.py")):
        needed = {path for path in reached(package / "scoring" / module) if path.is_relative_to(package)}
        own = {package / name for name in names}
        assert needed - own <= OF_NO_FEATURE, module
        assert own <= needed | {package / "images.py"}


def test_code_that_is_reached_through_several_modules_would_be_missed():
    align = STAGES["align"]
    without = [path for path in align["deps"] if path not in ("vapi_core/alignment", "vapi_core/randomness.py")]
    found = missing(align | {"deps": without})
    assert {"vapi_core/alignment/noise.py", "vapi_core/randomness.py"} <= set(found)
    assert "vapi_core/scoring/fidelity.py" not in found  # scoring has no part in an alignment
