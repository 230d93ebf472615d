"""DVC's plots without a network: a real browser draws the curves, by DVC's own commands too."""

import subprocess
import sys

import pytest
from dvc.config import Config

from pipelines.commands import plots
from tests.browser import FLAGS, needs_browser, open_browser
from vapi_core.errors import FileError

pytest.importorskip("vl_convert")
NO_NETWORK = "--host-resolver-rules=MAP * ~NOTFOUND"
DRAWN = "return document.querySelectorAll('.vega-embed svg .mark-line path').length"
STAGES = "plots:\n- curve.csv: {x: step, y: {curve.csv: loss}}\n"


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """One of DVC's, with a curve of three steps."""
    monkeypatch.chdir(tmp_path)
    run("init", "--no-scm", "--quiet")
    (tmp_path / "curve.csv").write_text("step,loss\n1,3.0\n2,2.0\n3,1.0\n")
    (tmp_path / "dvc.yaml").write_text(STAGES)
    return tmp_path


def run(*arguments: str) -> str:
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@needs_browser
@pytest.mark.parametrize("command", ["vapi plots", "dvc plots show"])
def test_the_curves_are_drawn_in_a_browser_without_a_network(repository, tmp_path, monkeypatch, command):
    plots.use_template()
    if command == "vapi plots":
        assert plots.plots([], repository / "dvc_plots") == 0
    else:
        run("plots", "show")
    monkeypatch.setattr("tests.browser.FLAGS", [*FLAGS, NO_NETWORK])
    with open_browser(tmp_path / "chromium") as browser:
        browser.get((repository / "dvc_plots/index.html").as_uri())
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(browser, 60).until(lambda browser: browser.execute_script(DRAWN) > 0)
        loaded = browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert not [name for name in loaded if name.startswith("http")]


def test_a_template_that_somebody_chose_stays(repository):
    with Config(".dvc").edit("repo") as config:
        config["plots"] = {"html_template": "own.html"}
    plots.use_template()
    assert Config(".dvc")["plots"]["html_template"] == "own.html"


def test_what_is_no_repository_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileError, match="DVC has no repository here"):
        plots.use_template()
