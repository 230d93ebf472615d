"""The dashboards in a real browser, on a real MLflow server: every chart is drawn. Skipped where there is no chromium."""

import os
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from pipelines.tracking import dashboards
from pipelines.tracking import runs as tracking
from tests.browser import needs_browser, open_browser, picture

EXTRACTORS = ("efficientnet-lite0", "scorer-classifier")
PLANNED = {d.key: d for d in dashboards.plan_dashboards(EXTRACTORS, geneval=False)}


def log_run(variant, table, seed, params, fid):
    tags = {"stage": "align", "profile": "digits", "variant": variant, "table": table}
    name, params = f"{variant}@{seed}", {**params, "seed": seed}
    with tracking.stage_run(experiment="digits", name=name, key=name, params=params, tags=tags) as run:
        for step in range(1, 11):
            run.log(
                {"train/reward": -fid / step, "train/ce": fid + 1 / step, "train/entropy": 3.0, "train/loss": 1 / step},
                step,
            )
        for extractor in EXTRACTORS:
            scores = {
                "fid": fid,
                "is_mean": 8 - fid,
                "accuracy": 1 - fid / 10,
                "precision": 0.8,
                "recall": 0.9 - fid / 9,
            }
            run.log({f"score/{name} {extractor}": value for name, value in scores.items()})


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """An MLflow server over a grid of cells, two seeds each, and two methods, with the dashboards registered."""
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
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
                log_run(f"cell-{i}", "sweep", seed, {"method": "va-pi", **setting}, fid)
        with tracking.stage_run(experiment="digits", name="sweep-1", key="sweep", params={}, tags={}) as sweep:
            sweep.adopt([f"cell-{i}@{seed}" for i in range(9) for seed in (4, 5)])  # which MLflow folds away
        for method in ("va-pi", "cross-entropy"):
            for seed in (4, 5):
                log_run(
                    method, "experiment", seed, {**setting, "method": method}, fid=1.0 + seed / 10 + len(method) / 10
                )
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
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(None, seconds, poll_frequency=0.5).until(lambda _: condition())


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with open_browser(tmp_path_factory.mktemp("chromium")) as driver:
        yield driver


# what a chart of each type has once it is drawn
MARKS = {
    "PARALLEL": ".parcoords",
    "CONTOUR": ".contourlayer image",
    "SCATTER": ".scatterlayer .points path",
    "BAR": ".barlayer .point path",
    "LINE": ".scatterlayer .js-line",
}


@needs_browser
@pytest.mark.parametrize("key", PLANNED)
def test_every_chart_of_a_dashboard_is_drawn(server, browser, key, tmp_path):
    address, experiment_id = server
    dashboard = PLANNED[key]
    browser.get("about:blank")
    browser.get(dashboards.url(address, experiment_id, dashboard))
    wanted = {}
    for charts in dashboard.sections.values():
        for chart in charts:
            wanted[chart["type"]] = wanted.get(chart["type"], 0) + 1

    def drawn():
        counted = browser.execute_script(
            """const marks = arguments[0];
            const cards = [...document.querySelectorAll('[data-testid="experiment-view-compare-runs-card"]')];
            return Object.fromEntries(Object.entries(marks).map(([type, mark]) =>
                [type, cards.filter(card => card.querySelector(mark)).length]));""",
            MARKS,
        )
        return all(counted[kind] >= count for kind, count in wanted.items()) and counted

    try:
        wait_until(drawn, 180)
    finally:
        browser.save_screenshot(picture(f"dashboard-{key}", tmp_path))


def test_a_view_is_kept_in_the_form_that_mlflow_reads():
    import base64
    import json
    import zlib

    kept = dashboards.encode(PLANNED["ablation"].view())
    assert kept.startswith("deflate;") and len(kept) < 5000  # MLflow's limit of a tag
    view = json.loads(zlib.decompress(base64.b64decode(kept.removeprefix("deflate;"))))
    assert {chart["metricSectionId"] for chart in view["compareRunCharts"]} == {"Grid", "Scores", "Training"}
    assert len({chart["uuid"] for chart in view["compareRunCharts"]}) == len(view["compareRunCharts"])


def test_methods_are_averaged_over_the_seeds_of_a_variant_and_without_the_cells_of_sweeps():
    view = PLANNED["methods"].view()
    assert view["groupBy"]["groupByKeys"] == [{"mode": "tag", "groupByData": "variant"}]
    assert "tags.table != 'sweep'" in view["searchFilter"]


def test_text_to_image_is_judged_by_geneval():
    ablation, _ = dashboards.plan_dashboards(["inception-v3-compat"], geneval=True)
    assert "score/overall geneval" in str(ablation.view())
