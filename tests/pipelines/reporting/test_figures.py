"""Grids hold every image once, in order."""

import numpy as np
from PIL import Image

from pipelines.reporting.figures import save_grid, tile


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
