"""The dashboards in a real browser, on a real MLflow server: every chart is drawn. Skipped without chromium."""

import base64
import json
import os
import socket
import subprocess
import sys
import urllib.request
import zlib
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from pipelines.config.params import short_name
from pipelines.tracking import dashboards
from pipelines.tracking import runs as tracking
from tests.browser import needs_browser, open_browser, picture

EXTRACTORS = ("efficientnet-lite0", "scorer-classifier")
PLANNED = {d.key: d for d in dashboards.plan_dashboards(EXTRACTORS, geneval=False, last=50)}


def log_run(variant, table, seed, params, fid, picture=None, ablation="cell"):
    tags = {"stage": "align", "profile": "digits", "variant": variant, "table": table, "ablation": ablation}
    name, params = f"{variant} · seed {seed}", {**params, "seed": seed}
    with tracking.stage_run(experiment="digits", name=name, key=name, params=params, tags=tags) as run:
        for step in range(1, 11):
            run.log(
                {"train/reward": -fid / step, "train/ce": fid + 1 / step, "train/entropy": 3.0, "train/loss": 1 / step},
                step,
            )
        run.log({"stage/seconds": 1.0})  # a metric that no dashboard has chosen
        for extractor in map(short_name, EXTRACTORS):
            scores = {
                "fid": fid,
                "is_mean": 8 - fid,
                "accuracy": 1 - fid / 10,
                "precision": 0.8,
                "recall": 0.9 - fid / 9,
            }
            run.log({f"score/{name}/{extractor}": value for name, value in scores.items()})
        if picture is not None:
            for step in (25, 50):
                run.image(tracking.PREVIEW, picture, step)
            run.image(tracking.SAMPLED, picture, 50)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """An MLflow server over a grid of cells, two seeds each, and two methods, with the dashboards registered."""
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    picture = folder / "picture.png"
    Image.new("RGB", (64, 64), (200, 80, 80)).save(picture)
    kept = Path.cwd(), os.environ.get("MLFLOW_TRACKING_URI")
    os.chdir(folder)
    uri = os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
    try:
        for i, (noise, weight) in enumerate((n, w) for n in (0.0, 0.25, 0.5) for w in (0.01, 0.1, 1.0)):
            setting = {
                "noise_ratio": noise,
                "regularizer": "ce",
                "regularizer_weight": weight,
                "terms": "mse",
                "credit": "image",
            }
            for seed in (4, 5):
                fid = 1 + noise + weight + seed / 10
                log_run(f"cell-{i}", "sweep", seed, {"method": "va-pi", **setting}, fid, picture)
        tags = {"stage": "sweep", "ablation": "sweep"}
        with tracking.stage_run(experiment="digits", name="sweep-1", key="sweep", params={}, tags=tags) as sweep:
            sweep.image(tracking.ANSWER, picture, 9)
            sweep.adopt([f"cell-{i} · seed {seed}" for i in range(9) for seed in (4, 5)])  # which MLflow folds away
        for method in ("va-pi", "cross-entropy"):
            for seed in (4, 5):
                given = {**setting, "method": method}
                log_run(method, "experiment", seed, given, fid=1.0 + seed / 10 + len(method) / 10)
        experiment_id = dashboards.register("digits", list(PLANNED.values()))
    finally:
        os.chdir(kept[0])
        os.environ.pop("MLFLOW_TRACKING_URI") if kept[1] is None else os.environ.update(MLFLOW_TRACKING_URI=kept[1])
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    process = subprocess.Popen(
        [*command, "--backend-store-uri", uri],
        cwd=folder,
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: answers(f"{address}/health"), 240)
        yield address, experiment_id
    finally:
        os.killpg(process.pid, 15)
        process.wait()


def answers(address):
    try:
        with urllib.request.urlopen(address, timeout=5):
            return True
    except OSError:
        return False


def wait_until(condition, seconds):
    """Asks again after an error of an element too: MLflow draws its page anew, and something over it, at any moment."""
    from selenium.common import exceptions
    from selenium.webdriver.support.ui import WebDriverWait

    errors = [
        exceptions.StaleElementReferenceException,
        exceptions.ElementNotInteractableException,
        exceptions.ElementClickInterceptedException,
    ]
    return WebDriverWait(None, seconds, poll_frequency=0.5, ignored_exceptions=errors).until(lambda _: condition())


def texts(browser, selector):
    """The texts of all elements, in one step of the browser: between two, MLflow may draw its page anew."""
    return browser.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map(found => found.innerText.trim())", selector
    )


def choose(browser, trigger, entry):
    """Opens a menu and takes an entry; opens it again if MLflow draws its page anew meanwhile, which closes it."""

    def chosen():
        if entries := browser.find_elements("xpath", f"//*[@role='menu']//*[text()='{entry}']"):
            entries[0].click()
            return True
        for found in browser.find_elements("css selector", trigger):
            if found.get_attribute("aria-expanded") != "true":
                found.click()
        return False

    wait_until(chosen, 120)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with open_browser(tmp_path_factory.mktemp("chromium")) as driver:
        driver.set_window_size(1700, 3900)  # MLflow draws what is in view
        driver.set_script_timeout(150)  # on a busy machine the page is at work for long
        yield driver


# what a chart of each type has once it is drawn
MARKS = {
    "PARALLEL": ".parcoords",
    "CONTOUR": ".contourlayer image",
    "SCATTER": ".scatterlayer .points path",
    "BAR": ".barlayer .point path",
    "LINE": ".scatterlayer .js-line",
    "IMAGE": "img",
}
CARD = '[data-testid="experiment-view-compare-runs-card"]'


def wait_until_drawn(browser, dashboard):
    wanted = Counter(chart["type"] for section in dashboard.sections for chart in section.charts)

    def drawn():
        counted = browser.execute_script(
            """const [marks, card] = arguments;
            const cards = [...document.querySelectorAll(card)];
            return Object.fromEntries(Object.entries(marks).map(([type, mark]) =>
                [type, cards.filter(card => card.querySelector(mark)).length]));""",
            MARKS,
            CARD,
        )
        return all(counted[kind] >= count for kind, count in wanted.items()) and counted

    wait_until(drawn, 180)


@needs_browser
@pytest.mark.parametrize("key", ["ablation", "methods"])
def test_every_chart_of_a_dashboard_is_drawn_and_no_other(server, browser, key, tmp_path):
    address, experiment_id = server
    dashboard = PLANNED[key]
    browser.get("about:blank")
    browser.get(dashboards.url(address, experiment_id, dashboard))
    try:
        wait_until_drawn(browser, dashboard)
    finally:
        browser.save_screenshot(picture(f"dashboard-{key}", tmp_path))
    charts = sum(len(section.charts) for section in dashboard.sections)
    wait_until(lambda: len(browser.find_elements("css selector", CARD)) == charts, 60)
    wait_until(lambda: all(section.name in texts(browser, "body")[0] for section in dashboard.sections), 60)


@needs_browser
def test_after_a_reload_the_menu_of_views_has_the_dashboards(server, browser):
    address, experiment_id = server
    browser.get("about:blank")
    browser.get(dashboards.url(address, experiment_id, PLANNED["runs"]))
    wait_until(lambda: "tags.variant" in browser.current_url, 120)  # the filter of the view: it is applied
    browser.refresh()
    choose(browser, '[data-testid="saved-views-trigger"]', "methods")
    wait_until(lambda: "tags.stage" in browser.current_url, 120)


@needs_browser
def test_settings_and_scores_are_columns_of_the_runs_and_the_page_is_one_of_training(server, browser, tmp_path):
    address, experiment_id = server
    browser.set_window_size(3000, 1200)  # columns that are out of view are not drawn
    browser.get("about:blank")
    browser.get(dashboards.url(address, experiment_id, PLANNED["runs"]))
    try:
        wait_until(lambda: {"noise_ratio", "score/fid/scorer"} <= set(texts(browser, ".ag-header-cell")), 120)
    finally:
        browser.save_screenshot(picture("runs", tmp_path))
    sections = set(texts(browser, "a"))
    assert "Model registry" in sections and "Prompts" not in sections  # of training, of GenAI


def test_a_view_is_kept_in_the_form_that_mlflow_reads():
    kept = dashboards.encode("ablation", PLANNED["ablation"].view(["stage/seconds", "score/fid/scorer"]), 1)
    assert len(kept) < 20_000  # MLflow's limit of an experiment's tag
    envelope = json.loads(kept)
    assert envelope["name"] == "ablation" and envelope["createdAt"] == 1
    view = json.loads(zlib.decompress(base64.b64decode(envelope["state"].removeprefix("deflate;"))))
    charts = view["compareRunCharts"]
    assert len({chart["uuid"] for chart in charts}) == len(charts)
    assert [chart["metricKey"] for chart in charts if chart["deleted"] and chart["type"] == "BAR"] == [
        "score/fid/scorer",
        "stage/seconds",
    ]


def test_methods_are_averaged_over_the_seeds_of_a_variant_and_without_the_cells_of_sweeps():
    view = PLANNED["methods"].view()
    assert view["groupBy"]["groupByKeys"] == [{"mode": "tag", "groupByData": "variant"}]
    assert "tags.table != 'sweep'" in view["searchFilter"]


def test_text_to_image_is_judged_by_geneval():
    ablation, *_ = dashboards.plan_dashboards(["inception-v3-compat"], geneval=True)
    assert "score/overall/geneval" in str(ablation.view())


def test_pictures_of_other_settings_are_known_by_the_names_of_their_scores():
    metrics = ["score/fid/scorer", "score/fid/scorer/T0.8-g1.0", "train/loss"]
    assert dashboards.other_pictures(metrics) == {"samples T0.8-g1.0"}
