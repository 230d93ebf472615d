"""Image files: which names are those of images, and how a file becomes RGB pixels."""

import io
import struct
import warnings
from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path, PurePath

from PIL import Image

from vapi_core.errors import FileError
from vapi_core.files import require_regular

# no vector graphics, no scientific data, nothing for which Pillow starts another program
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
MOST_PIXELS = (
    89_478_485  # where Pillow begins to warn; decoded they are 358 MB. Cameras without a film back have 61 million
)
REMEDY = "Repair, convert or remove the file."
ORIENTATION = 0x0112  # the tag of EXIF
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@cache
def formats() -> tuple[str, ...]:
    """Those of `FORMATS` that the installed Pillow reads."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@cache
def image_suffixes() -> frozenset[str]:
    """The endings, such as ".png", of the images that are read."""
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in formats())


def is_image_name(name: str) -> bool:
    """Whether a file of this name is taken for an image."""
    return PurePath(name).suffix.lower() in image_suffixes()


def count_suffixes(names: Iterable[str]) -> dict[str, int]:
    """How many names end with what, the most frequent first; those of files that were passed over."""
    return dict(Counter(PurePath(name).suffix.lower() or "without a suffix" for name in names).most_common())


def read_rgb(
    path: Path, content: bytes | None = None, *, exif_orientation: bool = True, shorter_side: int | None = None
) -> Image.Image:
    """Decodes an image as RGB. An alpha channel is dropped, as in LlamaGen's loader; of several frames it is the first.

    Args:
        content: the bytes of a file that lies inside another one; `path` then only names it.
        exif_orientation: whether it is turned and mirrored as its EXIF says, as viewers show it.
        shorter_side: pixels that are needed. A JPEG beyond `MOST_PIXELS` is decoded at a half, a quarter or an
            eighth of its size if that leaves so many.

    Raises:
        FileError: the file is missing, a pipe or a device, is not an image, is damaged, holds more than 8 bits per
            channel, or has more pixels than `MOST_PIXELS`; they are not decoded.
    """
    try:
        if content is None:
            require_regular(path, REMEDY)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # we refuse at the same number
            opened = Image.open(path if content is None else io.BytesIO(content), formats=formats())
        with opened as image:
            if image.mode.startswith(("I", "F")):  # convert("RGB") would clip these to white without a word
                raise FileError(path, f"the image has more than 8 bits per channel (mode {image.mode}).", REMEDY)
            _bound_pixels(image, path, shorter_side)
            turn = _turn(image) if exif_orientation else None  # of some files this decodes the pixels
            image.load()
            rgb = image if image.mode == "RGB" else image.convert("RGB")  # which would copy
    except FileNotFoundError:
        raise FileError(path, "the image is missing.") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise FileError(path, f"the file cannot be read as an image ({error}).", REMEDY) from None
    return rgb if turn is None else rgb.transpose(turn)


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What brings a stored image upright. Damaged EXIF says nothing, to us as to viewers.

    Not `ImageOps.exif_transpose`: that writes all other tags anew, which fails where one of them is damaged.
    """
    if image.format == "TIFF":
        return None  # Pillow turns these itself, as the format demands
    try:
        return TURNS.get(image.getexif().get(ORIENTATION, 1))
    except (SyntaxError, struct.error, ValueError, TypeError, KeyError, EOFError):
        return None


def _bound_pixels(image: Image.Image, path: Path, shorter_side: int | None) -> None:
    """Has a large JPEG decoded smaller; raises FileError for what is too large then."""
    width, height = image.size
    reduction = 1
    while width * height > MOST_PIXELS * reduction**2 and reduction < 8:
        reduction *= 2
    if reduction > 1 and shorter_side is not None and min(image.size) >= shorter_side * reduction:
        image.draft(None, (width // reduction, height // reduction))  # does nothing to other formats
    if image.width * image.height > MOST_PIXELS:
        problem = f"the image has {width} x {height} pixels, {width * height / 1e6:.0f} million; at most"
        raise FileError(path, f"{problem} {MOST_PIXELS / 1e6:.0f} million are decoded.", "Make it smaller.")
