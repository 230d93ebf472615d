"""The code is made of layers: no modules or folders lead back to each other, and no pipeline is below `vapi_core`."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = "vapi_core"
PIPELINE = {"dvc", "mlflow", "prefect", "pipelines"}
Imports = dict[str, set[str]]  # of a module: what it imports, inside functions too


def module_of(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def imported(tree: ast.Module, modules: set[str]) -> set[str]:
    """Names of all modules that are imported: from a package its module where one is meant, else the package."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "imports are absolute"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in modules else node.module for name in names}
    return found


def read_imports(sources: dict[str, str]) -> Imports:
    """Imports of modules, given as source text by name."""
    return {name: imported(ast.parse(text), set(sources)) for name, text in sources.items()}


def circles(imports: Imports, package: str) -> list[list[str]]:
    """Circles among the modules and folders of a package, and of each folder in it; one of each place at most."""
    depth = package.count(".") + 1
    inside = [name for name in imports if name.startswith(f"{package}.")]

    def child(name: str) -> str:
        return ".".join(name.split(".")[: depth + 1])

    graph: dict[str, set[str]] = {child(name): set() for name in inside}
    for name in inside:
        graph[child(name)] |= {child(other) for other in imports[name] if child(other) in graph} - {child(name)}
    found = []
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found.append(error.args[1])
    folders = {child(name) for name in inside if child(name) != name}
    return found + [circle for folder in sorted(folders) for circle in circles(imports, folder)]


def imports_in(package: str) -> Imports:
    return read_imports({module_of(path): path.read_text(encoding="utf-8") for path in Path(package).rglob("*.py")})


@pytest.fixture(scope="module")
def imports() -> Imports:
    return imports_in(ROOT)


@pytest.mark.parametrize("package", [ROOT, "pipelines"])
def test_no_modules_or_folders_import_each_other(package):
    imports = imports_in(package)
    assert len(imports) > 50
    assert circles(imports, package) == []


def test_the_science_imports_nothing_of_the_pipeline(imports):
    assert [(a, b) for a, found in imports.items() for b in found if b.partition(".")[0] in PIPELINE] == []


def test_the_science_does_not_know_how_its_files_are_made():
    texts = {path: path.read_text(encoding="utf-8").lower() for path in Path(ROOT).rglob("*.py")}
    assert [str(path) for path, text in texts.items() if "dvc repro" in text] == []


def test_a_family_of_generators_is_imported_by_the_list_of_families_alone(imports):
    others = {name: found for name, found in imports.items() if not name.startswith(f"{ROOT}.models.janus")}
    users = {name for name, found in others.items() if any(f.startswith(f"{ROOT}.models.janus") for f in found)}
    assert users == {f"{ROOT}.models.families"}


def test_a_circle_of_modules_is_found_even_where_it_is_closed_inside_a_function():
    a, b = "def f():\n    from vapi_core.models.b import g", "from vapi_core.models import a"
    found = circles(read_imports({"vapi_core.models.a": a, "vapi_core.models.b": b}), ROOT)
    assert [set(circle) for circle in found] == [{"vapi_core.models.a", "vapi_core.models.b"}]


def test_a_circle_of_folders_is_found_where_no_module_is_in_one():
    sources = {"x.one": "import vapi_core.y.one", "x.two": "", "y.one": "", "y.two": "from vapi_core.x.two import z"}
    found = circles(read_imports({f"vapi_core.{name}": text for name, text in sources.items()}), ROOT)
    assert [set(circle) for circle in found] == [{"vapi_core.x", "vapi_core.y"}]
