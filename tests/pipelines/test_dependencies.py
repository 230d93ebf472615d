"""dvc.yaml names, for every stage, the code that its results come from; else a change would leave stale results."""

import ast
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from vapi_core.fingerprint import EXTRACTION, REWARDS, STATISTICS, training_code

STAGES = yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"]
# what types, names, reads, tracks, tells and saves; results do not come from it
FRAME = [
    Path(path)
    for path in (
        "pipelines/config",
        "pipelines/estimates",
        "pipelines/frame",
        "pipelines/reporting/figures.py",
        "pipelines/tracking",
        "pipelines/repository",
        "pipelines/config/assets.py",
        "pipelines/config/loading.py",
        "pipelines/variants/previews.py",
        "pipelines/config/variant_rules.py",
        "pipelines/variants/run_scores.py",
        "pipelines/variants/score_files.py",
        "pipelines/config/variant.py",
        "vapi_core/distributed.py",
        "vapi_core/errors.py",
        "vapi_core/files.py",
        "vapi_core/arrays.py",
        "vapi_core/limits.py",
        "vapi_core/memory.py",
        "vapi_core/scoring/geneval/folder.py",
        "vapi_core/fingerprint.py",
    )
]
READERS = Path("pipelines/frame/inputs.py")  # in the frame; what it reads with is not
# its streams choose the subset: with other ones all that is behind is another
STREAMS = Path("vapi_core/randomness.py")
# reached from the modules of features and statistics, and no part of what these are
OF_NO_FEATURE = {Path("vapi_core", name) for name in ("models/weights.py", "randomness.py")}


def is_frame(path: Path) -> bool:
    return path != READERS and any(path.is_relative_to(part) for part in FRAME)


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
        if (path, name) in seen or is_frame(path):
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


def code_of(name: str) -> set[Path]:
    """Files that the stage `python -m pipelines.stages NAME` uses; methods of alignment are found by their names."""
    used = reached(Path("pipelines/stages", f"{name}.py"))
    return used | reached(Path("vapi_core/alignment/methods.py")) if name == "align" else used


def missing(stage: dict) -> list[str]:
    """What a stage uses and does not depend on."""
    stage = stage.get("do", stage)
    name = stage["cmd"].split()[3]
    dependencies = {Path(path) for path in stage["deps"]}
    known = {Path("pipelines/stages", f"{name}.py"), READERS} | ({STREAMS} if name != "subset" else set())
    return sorted(str(file) for file in code_of(name) - known if not dependencies & {file, *file.parents})


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_the_code_that_its_results_come_from(name):
    assert missing(STAGES[name]) == []


@pytest.mark.parametrize("name", STAGES)
def test_what_a_stage_depends_on_is_there_or_made_by_another_stage(name):
    made = {Path(str(out).partition("$")[0]) for out in outputs()}
    for path in map(str, STAGES[name].get("do", STAGES[name])["deps"]):
        fixed = Path(path.partition("$")[0])
        assert fixed.exists() or any(fixed.is_relative_to(out) or out.is_relative_to(fixed) for out in made), path


def outputs() -> list[str]:
    """All outputs that dvc.yaml names."""
    stages = [stage.get("do", stage) for stage in STAGES.values()]
    made = [out for stage in stages for kind in ("outs", "metrics", "plots") for out in stage.get(kind, [])]
    return [next(iter(out)) if isinstance(out, dict) else out for out in made]


def test_the_fingerprints_of_what_is_kept_between_runs_hold_the_code_that_it_comes_from():
    package = Path("vapi_core")
    for names, module in ((EXTRACTION, "features.py"), (STATISTICS, "fidelity.py")):
        needed = {path for path in reached(package / "scoring" / module) if path.is_relative_to(package)}
        own = {package / name for name in names}
        assert needed - own <= OF_NO_FEATURE, module
        assert own <= needed | {package / "data/images.py"}


def test_the_fingerprint_of_a_training_holds_all_that_an_alignment_comes_from():
    of_training = {path.relative_to(Path.cwd()) for path in training_code()}
    used = {path for path in code_of("align") if path.is_relative_to("vapi_core")}
    assert len(used) > 15 and used <= of_training
    assert {Path("vapi_core/scoring", name) for name in REWARDS} == {p for p in of_training if "scoring" in p.parts}


def test_code_that_is_reached_through_several_modules_would_be_missed():
    align = STAGES["align"]["do"]
    without = [path for path in align["deps"] if path != "vapi_core/alignment"]
    found = missing(align | {"deps": without})
    assert {"vapi_core/alignment/noise.py", "vapi_core/alignment/ar_grpo.py"} <= set(found)
    assert "vapi_core/scoring/fidelity.py" not in found  # scores have no part in an alignment


def test_dvcs_run_cache_has_every_stage_but_those_that_write_pages():
    """Plain outputs that git has keep a stage out of it; it would run again for every sweep on another commit."""
    stages = {name: stage.get("do", stage) for name, stage in STAGES.items()}
    plain = {name for name, stage in stages.items() for out in stage.get("outs", []) if isinstance(out, dict)}
    assert plain == {"report", "table"}
