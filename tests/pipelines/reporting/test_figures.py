"""Grids hold every image once, in order."""

import numpy as np
from PIL import Image

from pipelines.frame.grids import save_grid, tile
from pipelines.reporting import figures


def test_images_stand_row_by_row():
    images = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    picture = tile(images, columns=3)
    assert picture.shape == (4, 6, 3)
    assert picture[::2, ::2, 0].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_an_unfinished_row_is_filled_with_white():
    picture = tile(np.zeros((3, 2, 2, 3), np.uint8), columns=2)
    assert (picture[2:, 2:] == 255).all() and (picture[2:, :2] == 0).all()


def test_small_images_are_enlarged_by_a_whole_factor(tmp_path):
    save_grid(tmp_path / "grid.png", np.zeros((4, 28, 28, 3), np.uint8), columns=2)
    assert Image.open(tmp_path / "grid.png").size == (2 * 56, 2 * 56)


def test_equal_images_give_equal_files(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (4, 28, 28, 3), dtype=np.uint8)
    for name in ("a.png", "b.png"):
        save_grid(tmp_path / name, images, columns=2)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_curves_have_a_colour_for_each_alignment_and_all_alignments_a_name(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "save_figure", lambda path, figure: drawn.append(figure))
    seed, other = {"reward": np.array([1.0, np.nan, 3.0]), "ce": np.ones(3)}, {"ce": np.zeros(3)}
    figures.plot_curves(
        tmp_path / "curves.png", {"va-pi": [seed, seed], "cross-entropy": [other]}, ["reward", "ce", "kl"]
    )
    reward, ce, *unused = drawn[0].axes
    assert [ax.get_title() for ax in (reward, ce)] == ["reward", "ce"]  # nobody measured kl
    assert [line.get_xdata().tolist() for line in reward.lines] == [[1, 3]] * 2
    assert len({line.get_color() for line in ce.lines}) == 2 and len(ce.lines) == 3
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["va-pi", "cross-entropy"]
