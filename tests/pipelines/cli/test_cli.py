"""The command `vapi`: help is quick and has examples that can be typed, and every subcommand ends with one message."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from pipelines.cli.__main__ import main
from pipelines.cli.app import app
from pipelines.commands import passed_on, run

ROOT = typer.main.get_command(app)
SLOW = ("torch", "numpy", "pandas", "dvc", "mlflow", "prefect", "transformers", "huggingface_hub")
HELP = f"""
import sys
from pipelines.cli.__main__ import main
for words in {{commands}}:
    assert main([*words, "--help"]) == 0, words
loaded = [name for name in {SLOW} if name in sys.modules]
assert not loaded, loaded
"""


def leaves(command=ROOT, words: tuple[str, ...] = ()) -> dict[tuple[str, ...], object]:
    """Every subcommand that does something, by its words."""
    if not hasattr(command, "commands"):
        return {words: command}
    found = [leaves(below, (*words, name)) for name, below in command.commands.items()]
    return {name: leaf for part in found for name, leaf in part.items()}


def examples(command) -> list[str]:
    return command.epilog.split("\n\n")[1:]


def parse(line: str) -> tuple[str, ...]:
    """The subcommand of a typed line, which knows its arguments and options; runs nothing. [Optional parts] count."""
    program, *words = shlex.split(line.partition(" > ")[0].replace("[", "").replace("]", ""), comments=True)
    assert program == "vapi"
    command, path = ROOT, ()
    while hasattr(command, "commands"):
        path = (*path, words[0])
        command, words = command.commands[words[0]], words[1:]
    command.make_context(" ".join(path), words)
    return path


def test_no_help_imports_what_takes_seconds():
    commands = [[], *map(list, leaves())]
    result = subprocess.run(
        [sys.executable, "-c", HELP.format(commands=commands)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Example") >= len(leaves())


def test_the_subcommands_are_those_that_the_pages_speak_of():
    named = "run sweep report estimate profile assets sample score geneval export results ui bench plan reach upload dashboards"
    assert set(named.split()) <= {words[0] for words in leaves()}


@pytest.mark.parametrize("words", leaves(), ids=" ".join)
def test_the_examples_of_a_subcommand_can_be_typed(words):
    shown = examples(leaves()[words])
    assert shown and all(parse(line) == words for line in shown)


def typed(page: Path) -> list[str]:
    """The lines of a page that a person types: in blocks of code, and in backticks where they have a subcommand."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = re.findall(r"^(?:time )?(vapi .*)$", "".join(re.findall(r"^```.*?^```$", text, re.M | re.S)), re.M)
    spoken_of = {"vapi --help"} | {f"vapi {' '.join(words[:n])}" for words in leaves() for n in (1, 2)}
    return blocks + [line for line in re.findall(r"`(vapi [^`]+)`", text) if line not in spoken_of]


@pytest.mark.parametrize(
    "page", [Path("README.md"), Path("CONTRIBUTING.md"), *sorted(Path("docs").glob("*.md"))], ids=str
)
def test_what_a_page_says_can_be_typed(page):
    for line in typed(page):
        parse(line)


def test_the_pages_say_what_to_type():
    assert sum(len(typed(page)) for page in Path("docs").glob("*.md")) > 30


def test_an_example_with_an_option_that_is_not_there_would_be_found():
    with pytest.raises(Exception, match="--colour"):
        parse("vapi geneval images --colour red")


def test_what_is_typed_wrong_is_told_and_ends_with_2(capsys):
    assert main(["geneval"]) == 2 and "Missing argument 'folder'" in capsys.readouterr().err
    assert main(["genval"]) == 2 and "No such command 'genval'" in capsys.readouterr().err


def test_a_package_that_is_not_installed_is_named_with_what_installs_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pipelines.commands.results", None)
    with pytest.raises(ModuleNotFoundError):  # of our own: a programming error
        main(["results"])
    monkeypatch.delitem(sys.modules, "pipelines.commands.results")
    monkeypatch.setitem(sys.modules, "pipelines.reporting.grid", None)
    monkeypatch.setattr("pipelines.cli.app.OWN", ())
    assert main(["results"]) == 1
    assert "the package pipelines is not installed. `pip install -e '.[lab]'`" in capsys.readouterr().err


def test_options_of_another_parser_are_passed_on_as_they_are(monkeypatch):
    given = []
    monkeypatch.setattr(passed_on, "_call", lambda main, name, arguments: given.append((name, *arguments)) or 0)
    assert main(["bench", "align", "--profile", "mnist", "--threads", "1"]) == 0
    assert main(["bench", "--", "--help"]) == 0
    assert given == [("vapi bench", "align", "--profile", "mnist", "--threads", "1"), ("vapi bench", "--help")]


def test_a_parser_that_is_passed_options_reads_them_and_its_message_is_told(monkeypatch, capsys):
    def ends():
        assert sys.argv == ["vapi sweep", "--seeds", "4"]
        sys.exit("error: seeds: one is too few")

    monkeypatch.setattr("pipelines.flows.ablation_sweep.main", ends)
    before = sys.argv
    assert main(["sweep", "--seeds", "4"]) == 1 and sys.argv is before
    assert capsys.readouterr().err == "error: seeds: one is too few\n"


def test_a_page_is_named_where_a_target_has_one():
    pages = [str(run.page_of(target)) for target in ("report", "table@noise", "score@va-pi", "align")]
    assert pages == ["reports/report.md", "reports/noise.md", "None", "None"]


@pytest.mark.parametrize(
    ("changes", "name", "expected"),
    [
        ((), None, "repro report"),
        (("threads=1", "a.b=2"), None, "exp run --set-param threads=1 --set-param a.b=2 report"),
        ((), "mine", "exp run --name mine report"),
    ],
)
def test_a_change_or_a_name_makes_it_an_experiment(changes, name, expected):
    assert " ".join(run.dvc_command(["report"], changes, name)) == expected


def test_a_flow_is_no_experiment(capsys):
    assert main(["run", "--prefect", "-S", "threads=1"]) == 1
    assert "--prefect: it goes neither with --set-param nor with --name" in capsys.readouterr().err
