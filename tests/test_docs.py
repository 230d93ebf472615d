"""The pages for people: links lead somewhere, commands name modules that are there, and lines of prose are short."""

import re
from pathlib import Path

import pytest
import yaml

PAGES = [Path(name) for name in ("README.md", "CONTRIBUTING.md", "data/README.md")] + sorted(Path("docs").rglob("*.md"))
LONGEST_LINE = 120
LINK = re.compile(r"\]\(([^)\s]+)\)")
MODULE = re.compile(r"python -m ((?:pipelines|benchmarks|tests)[\w.]*)")
SOURCE = re.compile(r"`((?:vapi_core|pipelines|benchmarks|tests|profiles|docs)/[\w./-]+)`")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


def outputs() -> set[Path]:
    """The files and folders that the stages of tables write; they may not be made yet."""
    stages, params = (
        yaml.safe_load(Path("dvc.yaml").read_text())["stages"],
        yaml.safe_load(Path("params.yaml").read_text()),
    )
    templates = [name for out in stages["table"]["do"]["outs"] for name in out]
    named = [template.replace("${item}", table) for template in templates for table in params["tables"]]
    return {Path(name) for name in [*named, *(name for out in stages["report"]["outs"] for name in out)]}


def anchors(page: Path) -> set[str]:
    """The headings of a page, as GitHub links to them."""
    headings = HEADING.findall(prose(page.read_text(encoding="utf-8")))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def prose(text: str) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def broken_links(page: Path, text: str, made: set[Path]) -> list[str]:
    """Relative links of a page that lead nowhere."""
    broken = []
    for link in LINK.findall(prose(text)):
        if link.startswith(("http://", "https://")):
            continue
        place, _, anchor = link.partition("#")
        target = Path(*(page.parent / place).resolve().relative_to(Path.cwd()).parts) if place else page
        is_made = any(target.is_relative_to(output) for output in made)
        if not (target.exists() or is_made) or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


def module_exists(name: str) -> bool:
    path = Path(*name.rstrip(".").split("."))
    return path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()


def long_lines(text: str) -> list[str]:
    """Lines of prose that are too long; tables, code and lines that only a link makes long are none."""
    shown = [LINK.sub("]", line) for line in prose(text).splitlines() if not line.lstrip().startswith("|")]
    return [line for line in shown if len(line) > LONGEST_LINE]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_commands_and_lines_of_a_page(page):
    text = page.read_text(encoding="utf-8")
    assert broken_links(page, text, outputs()) == []
    assert [name for name in MODULE.findall(text) if not module_exists(name)] == []
    assert [name for name in SOURCE.findall(text) if not Path(name).exists() and "log" not in page.parts] == []
    assert long_lines(text) == []


def test_every_page_can_be_reached_from_the_readme():
    seen, waiting = set(), [Path("README.md")]
    while waiting:
        page = waiting.pop()
        seen.add(page)
        links = [link.partition("#")[0] for link in LINK.findall(page.read_text(encoding="utf-8"))]
        near = [(page.parent / link).resolve().relative_to(Path.cwd()) for link in links if link.endswith(".md")]
        waiting += [other for other in near if other in PAGES and other not in seen]
    assert set(PAGES) - seen - {Path("data/README.md")} == set()


def test_a_link_to_nothing_and_to_no_heading_are_found():
    text = "[a](params.yaml) [b](missing.md) [c](README.md#two-commands) [d](README.md#three) [e](reports/noise.md)"
    assert broken_links(Path("README.md"), text, {Path("reports/noise.md")}) == ["missing.md", "README.md#three"]


def test_modules_are_those_that_python_can_run():
    assert module_exists("pipelines.stages") and module_exists("pipelines.commands.export")
    assert not module_exists("pipelines.export") and not module_exists("pipelines.commands")


def test_a_long_line_of_prose_is_found_and_a_long_row_is_not():
    long = "word " * 30
    assert long_lines(f"{long}\n| {long} |\n```\n{long}\n```\n") == [long]
