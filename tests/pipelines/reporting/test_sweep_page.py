"""A sweep as one file: a browser without a network shows its cells over ξ and β, and opens the samples of each."""

import io
import json
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from pipelines.config.loading import check_params
from pipelines.config.profiles import read_profile
from pipelines.config.variant import GRID, find_variant
from pipelines.reporting import grid as grids
from pipelines.reporting import sweep_page
from pipelines.reporting.grid import write_page_again
from pipelines.variants.cells import read_grids
from tests.browser import needs_browser, open_browser, picture
from tests.pipelines.reporting.workspace import ROOT
from vapi_core.errors import FileError
from vapi_core.files import write_json

SWEEP, UPSTREAM, SEEDS = "sweep-00000000", "upstream-00000000", [4, 5]
NOISES, WEIGHTS, KINDS = (0.0, 0.5), (0.1, 1.0), ("ce", "kl")


def name_of(noise, kind, weight):
    return f"noise{noise:g}-{kind}{weight:g}-mse".replace(".", "_")


def fid(noise, kind, weight):
    """The best cell is ξ 0.5, β 0.1, kl."""
    return 5 - noise - weight + (2 if weight == 1.0 else 0) - (kind == "kl")


def rows(variant, value):
    judged = {"steps": None, "temperature": 1.0, "guidance_scale": 1.0, "extractor": "scorer-classifier"}
    judged |= {"variant": variant.name, "reference": "heldout"}
    return [judged | {"seed": s, "fid": value + s / 100, "accuracy": 1 / value} for s in variant.seeds]


def write_grid(folder, shade):
    folder.mkdir(parents=True)
    Image.fromarray(np.full((56, 56, 3), shade, np.uint8)).save(folder / GRID)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A repository with a finished sweep: in git its scores, in DVC's cache its samples, of a shade for each cell."""
    place = tmp_path_factory.mktemp("sweep")
    content = read_profile("mnist", ROOT)
    content["align"]["seeds"] = SEEDS
    cells = {name_of(*cell): cell for cell in [(n, k, w) for n in NOISES for k in KINDS for w in WEIGHTS]}
    content["tables"], content["variants"] = [], {"va-pi": content["variants"]["va-pi"]}
    for name, (noise, kind, weight) in cells.items():
        align = {"noise_ratio": noise, "regularizer": kind, "regularizer_weight": weight, "reward": {"perceptual": 0.0}}
        content["variants"][name] = {"table": "sweep", "method": "va-pi", "align": align, "guidance_scales": [1.0]}
    params = check_params(content)
    for shade, name in enumerate([*cells, "base"]):
        variant = find_variant(params, name)
        (place / variant.scores).mkdir(parents=True)
        table = rows(variant, fid(*cells[name]) if name in cells else 4.5)
        pd.DataFrame(table).to_csv(place / variant.scores / "scores.csv", index=False)
        for seed in SEEDS:
            sampling = find_variant(params, next(iter(cells))).samplings[0]
            write_grid(place / variant.image_set(seed, sampling).directory, 20 * shade + seed)
    (place / "params.yaml").write_text(yaml.safe_dump(content))

    def run(*command):
        return subprocess.run(command, cwd=place, check=True, capture_output=True, text=True).stdout.strip()

    dvc = [sys.executable, "-m", "dvc"]
    run("git", "init", "-q")
    run("git", "-c", "user.name=x", "-c", "user.email=x@y", "commit", "-qm", "first", "--allow-empty")
    head = run("git", "rev-parse", "HEAD")
    run(*dvc, "init", "-q")
    run(*dvc, "add", "-q", "data/samples")
    run("git", "add", "-A")
    run("git", "-c", "user.name=x", "-c", "user.email=x@y", "commit", "-qm", "a sweep")
    names = [f"{name}-00000000" for name in cells]
    for name in (*names, UPSTREAM):
        run("git", "update-ref", f"refs/exps/{head[:2]}/{head[2:]}/{name}", "HEAD")
    write_json(place / "sweeps" / SWEEP / grids.CELLS, {"cells": names, "upstream": UPSTREAM})
    return place


@pytest.fixture(autouse=True)
def at_work(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setattr(grids, "WORK", place)


def test_the_page_is_one_file_with_all_cells_their_scores_and_their_samples_beside_the_bases(place):
    path = write_page_again(SWEEP)
    assert path == place / "sweeps" / SWEEP / "sweep.html"
    text = path.read_text()
    assert not re.search(r"https?://|<link|<script src", text)
    data = json.loads(re.search(r"const data = (\{.*\});", text)[1])
    assert [score["name"] for score in data["scores"]] == ["fid/scorer", "accuracy/scorer"]
    best = f"{name_of(0.5, 'kl', 0.1)}-00000000"
    assert data["best"]["fid/scorer"] == best and len(data["cells"]) == 8
    assert [map_["title"] for map_ in data["maps"]] == ["ce", "kl"]
    found = [cell["pictures"] for cell in (*data["cells"].values(), data["base"])]
    assert all(list(pictures) == ["4", "5"] for pictures in found)
    assert len({url for pictures in found for url in pictures.values()}) == 18
    assert data["base"]["scores"]["fid/scorer"] == pytest.approx(4.545)


def test_a_picture_is_that_of_the_cell_and_the_seed():
    (cell,) = grids.finished_cells([f"{name_of(0.0, 'ce', 0.1)}-00000000"])
    found = read_grids(cell, cell.variant.samplings[0], [5, 9])
    assert [np.asarray(Image.open(io.BytesIO(png))).max() for png in found.values()] == [5] and list(found) == [5]


def test_a_large_picture_is_made_smaller():
    content = io.BytesIO()
    Image.new("RGB", (2560, 1280)).save(content, "PNG")
    assert sweep_page.shrunk(content.getvalue()).startswith("data:image/jpeg;base64,")


def scattered(cells):
    return pd.DataFrame(
        [(f"cell {i}", noise, "ce", weight) for i, (noise, weight) in enumerate(cells)],
        columns=["experiment", "noise_ratio", "regularizer", "regularizer_weight"],
    )


def test_a_table_has_its_fields_side_by_side_and_scattered_cells_stand_where_their_values_are():
    table = sweep_page.map_of("ce", scattered([(0.0, 0.1), (0.5, 0.1), (1.0, 0.1), (0.0, 1.0)]))
    assert [(p.left, p.bottom) for p in table.places] == [(0, 0), (1 / 3, 0), (2 / 3, 0), (0, 0.5)]
    assert [label for label, _ in table.columns] == ["0", "0.5", "1"]
    points = sweep_page.map_of("ce", scattered([(0.0, 0.01), (0.25, 0.1), (0.5, 1.0), (1.0, 0.5)]))
    room = 1 - sweep_page.POINT
    assert [p.left for p in points.places] == pytest.approx([0, room / 4, room / 2, room])
    assert points.places[1].bottom == pytest.approx(room / 2)  # on a log scale
    assert [label for label, _ in points.rows] == ["0.01", "1"]


def test_another_name_is_told_with_those_that_there_are():
    with pytest.raises(FileError, match=f"no sweep of this name has ended here; there are: {SWEEP}"):
        write_page_again("sweep-1")


@needs_browser
def test_a_reader_clicks_a_cell_and_sees_its_samples_and_picks_another_score(tmp_path):
    from selenium.webdriver.support.ui import Select, WebDriverWait

    path = write_page_again(SWEEP, tmp_path / "sweep.html")
    with open_browser(tmp_path / "chromium") as browser:
        browser.set_window_size(1200, 1300)
        browser.get(f"file://{path}")

        def found(selector):
            return browser.find_elements("css selector", selector)

        def shown():
            return browser.find_element("id", "name").text, [i.get_attribute("src") for i in found("#pictures img")]

        assert len(found(".map")) == 2 and len(found(".field button")) == 8
        name, pictures = shown()  # of the best cell, with which it opens
        assert name == "Samples: ξ 0.5 · β 0.1 · kl · mse" and len(pictures) == 4  # two seeds of it, two of the base
        (best,) = found("button.best")
        assert best.text == "3.445"
        other = f"{name_of(0.0, 'ce', 1.0)}-00000000"
        found(f"button[data-experiment='{other}']")[0].click()
        name, others = shown()
        assert name == "Samples: ξ 0 · β 1 · ce · mse" and others[:2] != pictures[:2] and others[2:] == pictures[2:]
        Select(browser.find_element("id", "score")).select_by_value("accuracy/scorer")
        (best,) = found("button.best")
        assert best.text == "0.2941"
        WebDriverWait(browser, 60).until(
            lambda _: all(image.get_property("naturalWidth") > 0 for image in found("#pictures img"))
        )
        browser.save_screenshot(picture("sweep-page", tmp_path))
