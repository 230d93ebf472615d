"""The pictures of a page are drawn from the sets, curves and scores of its own rows."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from pipelines.reporting import pictures
from pipelines.reporting.evidence import gather
from pipelines.reporting.figures import plot_densities
from pipelines.reporting.tables import TABLES
from tests.pipelines.reporting.workspace import FID, params_with, write_images, write_run

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def evidence_of(name, params=None, **run):
    params = params or params_with()
    write_run(params, TABLES[name].rows, **run)
    return gather(TABLES[name], params)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("seeds", [[4, 5, 6], [4]])
@pytest.mark.parametrize("name", ["report", "noise", "reward"])
def test_a_finished_run_gets_all_pictures_of_its_page(name, seeds):
    params = params_with(seeds=seeds)
    write_images(params)
    evidence = evidence_of(name, params)
    for path in pictures.draw_pictures(evidence, CPU):
        assert path.parts[:3] == ("reports", "figures", name)
        with Image.open(path) as image:
            pixels = np.asarray(image)
        assert min(pixels.shape[:2]) > 100 and len(np.unique(pixels.reshape(-1, 4), axis=0)) > 10


def test_pictures_are_the_same_whenever_they_are_drawn():
    params = params_with()
    write_images(params)
    evidence = evidence_of("report", params)
    drawn = [path.read_bytes() for path in pictures.draw_pictures(evidence, CPU)]
    assert drawn == [path.read_bytes() for path in pictures.draw_pictures(evidence, CPU)]


# The axis of an ablation


def drawn_axis(evidence):
    ax = Figure().subplots()
    rows = evidence.summary.query("guidance_scale == 1.0 and extractor == 'scorer-classifier'")
    pictures.draw_axis_panel(ax, evidence, rows.assign(y=rows["fid"], error=0.1))
    return ax


def test_a_line_leads_through_the_rows_of_the_axis_and_a_dashed_one_marks_the_base():
    ax = drawn_axis(evidence_of("regularizer", fid=FID | {"kl-1_0": 7.0}, spread=0.0))
    lines = {container.get_label(): container.lines[0].get_xydata() for container in ax.containers}
    assert set(lines) == {"CE", "KL"} and ax.get_xscale() == "log"
    assert lines["CE"].tolist() == [[0.01, 4.0], [0.1, 3.0], [1.0, 4.0]]  # va-pi is the row in the middle
    assert lines["KL"][-1].tolist() == [1.0, 7.0]
    (base,) = [line for line in ax.lines if line.get_linestyle() == "--"]
    assert base.get_ydata()[0] == 5.0
    assert {text.get_text() for text in ax.get_legend().get_texts()} == {"CE", "KL", "base"}


def test_bars_stand_in_the_order_of_the_paper_without_rows_beside_the_axis():
    ax = drawn_axis(evidence_of("reward"))
    labels = [text.get_text() for text in ax.get_xticklabels()]
    assert labels == ["mse, no prior", "perceptual, no prior", "mse+perceptual, no prior", "prior only", "all"]


def test_extractors_that_see_nothing_have_no_panel(monkeypatch):
    titles = []
    monkeypatch.setattr(
        pictures, "save_figure", lambda path, figure: titles.extend(ax.get_title() for ax in figure.axes)
    )
    evidence = evidence_of("regularizer", blind=("efficientnet-lite0",))
    pictures.DRAWN["axis"]("axis.png", evidence, CPU)
    assert [title for title in titles if title] == ["paper: FID", "scorer-classifier: FID"]


# Samples, curves, precision and recall, densities


def test_beside_the_methods_stands_the_other_temperature_of_the_lowest_fid():
    evidence = evidence_of("report", fid=FID | {0.8: 4.3, 0.6: 4.2})
    (control,) = pictures.best_control(evidence).items()
    assert control[0] == "base at T 0.6" and control[1].config.temperature == 0.6


def test_without_other_temperatures_no_control_is_shown():
    params = params_with(controls={"base": {"temperatures": [1.0]}})
    assert pictures.best_control(evidence_of("report", params)) is None


def test_rows_of_samples_show_the_first_images_and_of_text_to_image_all_prompts():
    params = params_with()
    assert pictures.row_items(params, 1000).tolist() == list(range(10))
    captioned = params.model_copy(update={"task": "t2i"})
    items = pictures.row_items(captioned, 1000)
    assert len(items) == 10 and items[0] == 0 and items[-1] == 999 and (np.diff(items) > 90).all()


def test_the_way_of_an_alignment_starts_at_the_base_and_ends_where_it_does():
    evidence = evidence_of("report")
    sets = evidence.sets.assign(model=evidence.sets["row"].str.replace(r" at T .*", "", regex=True))
    way = pictures.ways(sets, evidence).query("model == 'va-pi' and extractor == 'scorer-classifier'")
    assert list(way["steps"]) == [0, 20, 40, 50] and set(way["seed"]) == {4}
    base = sets.query("variant == 'base' and seed == 4 and temperature == 1.0 and guidance_scale == 1.0")
    assert way["precision"].iloc[0] == base.query("extractor == 'scorer-classifier'")["precision"].iloc[0]


def test_curves_are_read_with_gaps_where_nothing_was_measured():
    write_images(params_with())
    curve = pictures.read_curves(pictures.CURVES / "va-pi" / "4.csv")
    assert set(curve) == {"loss", "ce", "reward"} and curve["loss"].tolist() == [3.0, 2.0, 1.0]
    assert np.isnan(curve["ce"]).tolist() == [False, True, False]


def test_points_are_projected_on_the_axes_in_which_real_images_vary_most(tmp_path):
    random = np.random.default_rng(0)
    real = random.normal(size=(300, 5)) * [5.0, 0.1, 3.0, 0.1, 0.1]
    points, share = pictures.project({"real": real, "base": real + [10.0, 0, 0, 0, 0]})
    assert share > 0.99
    assert np.allclose(points["base"] - points["real"], points["base"][0] - points["real"][0])
    assert np.linalg.norm(points["base"][0] - points["real"][0]) == pytest.approx(10.0, rel=0.01)
    plot_densities(tmp_path / "densities.png", points, share)
    assert (tmp_path / "densities.png").stat().st_size > 1000
