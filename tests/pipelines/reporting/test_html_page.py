"""The report as one file: a browser without a network shows scores, samples by class and seed, reconstructions."""

import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from pipelines.config.loading import check_params
from pipelines.config.paths import FIGURES, TABLES
from pipelines.config.variant import variants_of
from pipelines.frame.inputs import IMAGES, LABELS, open_tokenizer
from pipelines.reporting import html_page, tables
from tests.browser import needs_browser, open_browser, picture
from tests.pipelines.variants.workplace import CLASSES, SIDE, fill, tiny_content
from vapi_core.alignment.reward import ReconstructionReward, RewardWeights
from vapi_core.arrays import write_manifest
from vapi_core.data.subset import plan_subset
from vapi_core.errors import FileError

CPU, REPORT = torch.device("cpu"), tables.TABLES["report"]


def write_report(params, path):
    reward = ReconstructionReward(open_tokenizer(CPU), RewardWeights(perceptual=0.0))
    html_page.write_page(path, REPORT, params, reward, CPU)


@pytest.fixture
def params(tmp_path, monkeypatch):
    """What the report's stage leaves, of tiny models: every image of a set is as bright as its seed and class say."""
    monkeypatch.chdir(tmp_path)
    content = tiny_content()
    content["align"]["seeds"] = [4, 5]
    content["subset"]["splits"] = {"heldout": 10, "train": 10, "scorer": 10}
    params = check_params(content)
    monkeypatch.setattr("tests.pipelines.variants.workplace.plan_subset", heldout_plan)
    fill(params)
    for variant in variants_of(params, *REPORT.rows):
        for image_set in variant.sets:
            labels = np.arange(2 * CLASSES) % CLASSES
            shades = (100 + 10 * (image_set.seed - 4) + labels).astype(np.uint8)
            image_set.directory.mkdir(parents=True)
            np.save(image_set.directory / IMAGES, np.tile(shades[:, None, None, None], (1, SIDE, SIDE, 3)))
            np.save(image_set.directory / LABELS, labels)
            shape = [len(labels), SIDE, SIDE, 3]
            write_manifest(image_set.directory, {"kind": "samples", "shape": shape}, (IMAGES, LABELS))
    rows = [(name, 1.0, "scorer-classifier", "heldout", fid) for name, fid in (("base", 3.0), ("va-pi", 2.0))]
    summary = pd.DataFrame(rows, columns=["row", "guidance_scale", "extractor", "reference", "fid"])
    (TABLES / "report").mkdir(parents=True)
    summary.assign(fid_low=1.5, fid_high=3.5).to_csv(TABLES / "report/summary.csv", index=False)
    (FIGURES / "report").mkdir(parents=True)
    for name in html_page.FIGURES_SHOWN:
        Image.new("RGB", (40, 30)).save(FIGURES / "report" / f"{name}.png")
    return params


def heldout_plan(labels, classes, splits, seed):
    """All images are held out: nothing is trained here."""
    return plan_subset(labels, classes, {"heldout": 10}, seed)


def test_the_page_is_one_file_that_asks_for_nothing_else_and_the_same_each_time(params, tmp_path):
    write_report(params, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert not re.search(r"https?://|<link|<script src", text)
    write_report(params, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text() == text
    data = json.loads(re.search(r"const data = (\{.*\});", text)[1])
    assert data["seeds"] == [4, 5] and data["classes"] == list("abcde")
    assert [row["name"] for row in data["rows"]] == ["base, no alignment", "VA-π"]
    assert [row["cells"][0]["best"] for row in data["rows"]] == [False, True]


def test_a_missing_figure_is_told_with_what_to_do(params, tmp_path):
    (FIGURES / "report/curves.png").unlink()
    with pytest.raises(FileError, match="curves.png: the figure is missing. To make it, run `dvc repro report`"):
        write_report(params, tmp_path / "report.html")


@needs_browser
def test_a_reader_picks_class_and_seed_and_the_order_of_reconstructions(params, tmp_path):
    from selenium.webdriver.support.ui import Select

    write_report(params, tmp_path / "report.html")
    with open_browser(tmp_path / "chromium") as browser:
        browser.set_window_size(1200, 1600)
        browser.get(f"file://{tmp_path}/report.html")

        def chosen(name, value):
            Select(browser.find_element("id", name)).select_by_value(value)

        def rows():
            return [row.text for row in browser.find_elements("css selector", "#samples .row b")]

        def first_image():
            return browser.find_element("css selector", "#samples .image").get_attribute("style")

        def rewards():
            return [float(p.get_attribute("data-reward")) for p in browser.find_elements("css selector", ".pair")]

        guided = [f"{name}{guidance}" for name in ("base, no alignment",) for guidance in ("", ", guidance 2")]
        assert rows()[:2] == guided and "2" in browser.find_element("id", "scores").text
        assert len(browser.find_elements("css selector", "#samples .image")) == 2 * len(rows())
        before = first_image()
        chosen("class", "c")
        of_class = first_image()
        chosen("seed", "5")
        assert len({before, of_class, first_image()}) == 3
        assert len(rewards()) == 2 and rewards() == sorted(rewards(), reverse=True)
        chosen("order", "1")
        assert rewards() == sorted(rewards())
        browser.save_screenshot(picture("report", tmp_path))
