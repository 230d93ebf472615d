"""Sources of images with captions: a folder, webdataset tars (LAION-COCO), data sets in the formats of Hugging Face.

Every caption is read when the source is made, no image is decoded before it is chosen. Captions stay as they stand in
the data; encoders clean them. What lacks an image or a caption is an error that counts such items and names the first:
the official loader trains on a black image in their place.
"""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from vapi_core.data.hub import load_row, open_dataset
from vapi_core.data.image_files import count_suffixes, image_suffixes, is_image_name
from vapi_core.data.shards import Files, Place, find_shards, place_of, read_samples
from vapi_core.data.sources import ImageSource, read_image
from vapi_core.errors import FileError
from vapi_core.files import decode_text, parse_json, read_bytes, read_text, require_utf8_name, split_lines

IMAGE_KEYS = ("file_name", "image_path", "image")
CAPTION_KEYS = ("caption", "text")


def _source(
    name: str,
    image_size: int,
    ids: Sequence[str],
    captions: Sequence[str],
    load: Any,
    passed_over: Mapping[str, int] | None = None,
) -> ImageSource:
    return ImageSource(
        name=name,
        image_size=image_size,
        classes=("image",),
        ids=tuple(ids),
        labels=np.zeros(len(ids), dtype=np.int64),
        load=load,
        captions=tuple(captions),
        passed_over=passed_over or {},
    )


def _refuse(where: Path, problem: str, names: Iterable[str], remedy: str) -> None:
    """Raises a FileError that counts and names these items; nothing if there are none."""
    if listed := list(names):
        more = ", ..." if len(listed) > 3 else ""
        raise FileError(where, f"{len(listed)} {problem}: {', '.join(listed[:3])}{more}.", remedy)


def captioned_folder_source(root: Path | str, image_size: int, *, exif_orientation: bool = True) -> ImageSource:
    """The images of a folder with `captions.jsonl`, `captions.csv`, or a .txt file beside each image (1.png, 1.txt).

    Text is UTF-8, with or without a byte order mark. What is neither an image by its name nor a caption is counted as
    passed over.

    A row of the captions file names an image, relative to the folder, as `file_name`, `image_path` or `image`, and has
    its text as `caption` or `text`. Several rows may name one image: each is an item of its own.

    Args:
        exif_orientation: whether images are turned as their EXIF says; LlamaGen's own loader leaves them as stored.

    Raises:
        FileError: no such folder, no captions, rows that cannot be read (the line is named), names that are not
            UTF-8, images without a caption or captions without an image; and, when an image is loaded, a file that
            cannot be read as an image.
    """
    root = Path(root)
    layout = f"Expected layout: images and {root}/captions.jsonl, or captions.csv, or a .txt file beside each image."
    if not root.is_dir():
        raise FileError(root, "there is no such folder.", layout)
    visible = (path for path in root.rglob("*") if not any(p.startswith(".") for p in path.relative_to(root).parts))
    names = [path.relative_to(root).as_posix() for path in visible if is_image_name(path.name) or not path.is_dir()]
    images = {name for name in names if is_image_name(name)}
    for name in images:
        require_utf8_name(name, root)
    files = [root / name for name in ("captions.jsonl", "captions.csv") if name in names]
    if len(files) == 2:
        raise FileError(root, "there are captions.jsonl and captions.csv.", "Keep one of them.")
    rows = list(_read_captions(files[0]) if files else _text_beside(root, sorted(images)))
    if not rows:
        raise FileError(root, "there are no captions.", layout)
    where, remedy = files[0] if files else root, "Add what is missing, or take its counterpart away."
    named = {image for image, _ in rows}
    _refuse(where, "captions belong to images that are not there", sorted(named - images), remedy)
    _refuse(where, "images have no caption", sorted(images - named), remedy)
    _refuse(where, "captions are empty", (image for image, caption in rows if not caption.strip()), remedy)
    used = images | ({files[0].name} if files else {PurePosixPath(i).with_suffix(".txt").as_posix() for i in images})

    def load(index: int) -> np.ndarray:
        return read_image(root / rows[index][0], image_size, exif_orientation=exif_orientation)

    ids, captions = _unique_ids([image for image, _ in rows]), [caption for _, caption in rows]
    passed_over = count_suffixes(name for name in names if name not in used)
    return _source("captioned folder", image_size, ids, captions, load, passed_over)


def _read_captions(path: Path) -> Iterator[tuple[str, str]]:
    """Images and captions of a captions file, row by row."""
    text = read_text(path)
    for number, row in _csv_rows(path, text) if path.suffix == ".csv" else _json_rows(path, text):
        fields = row if isinstance(row, dict) else {}
        image = next((fields[key] for key in IMAGE_KEYS if key in fields), None)
        caption = next((fields[key] for key in CAPTION_KEYS if key in fields), None)
        if not isinstance(image, str) or not isinstance(caption, str):
            expected = f"an image ({', '.join(IMAGE_KEYS)}) and a caption ({', '.join(CAPTION_KEYS)})"
            raise FileError(path, f"line {number} does not hold {expected} as text.")
        yield PurePosixPath(image).as_posix(), caption


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise FileError(path, f"the file is damaged (line {reader.line_num}: {error}).") from None


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(split_lines(text), start=1):
        if line.strip():
            try:
                yield number, parse_json(line)
            except ValueError as error:
                raise FileError(path, f"the file is damaged (line {number}: {error}).") from None


def _text_beside(root: Path, images: Iterable[str]) -> Iterator[tuple[str, str]]:
    for image in images:
        path = (root / image).with_suffix(".txt")
        if path.exists():
            yield image, decode_text(read_bytes(path), path).strip()


def _unique_ids(names: Sequence[str]) -> list[str]:
    """The names, numbered from the second occurrence on: a.png, a.png#2."""
    seen: dict[str, int] = {}
    ids = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        ids.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return ids


def webdataset_source(
    root: Path | str, image_size: int, *, caption_key: str | None = None, exif_orientation: bool = True
) -> ImageSource:
    """The samples of all .tar shards of a folder, as img2dataset writes LAION-COCO; an id is shard and key.

    Files of a shard that share a name up to the first dot are one sample: an image, and a .txt or .json file.

    Args:
        caption_key: the entry of the .json file that is the caption, e.g. "top_caption"; without it the .txt file is,
            and where there is none the entry "caption".

    Raises:
        FileError: no shards, a shard that is damaged or cut off, or samples without an image or a caption; and, when an
            image is loaded, one that cannot be read.
    """
    root = Path(root)
    ids: list[str] = []
    captions: list[str] = []
    places: list[Place] = []
    without_image: list[str] = []
    without_caption: list[str] = []
    for shard in find_shards(root):
        for key, files in read_samples(shard):
            name = f"{shard.stem}/{key}"
            image = next((file for suffix, file in files.items() if suffix in image_suffixes()), None)
            if image is None:
                without_image.append(name)
            elif not (caption := _caption(shard, key, files, caption_key)):
                without_caption.append(name)
            else:
                ids.append(name)
                captions.append(caption)
                places.append(place_of(shard, image))
    _refuse(root, "samples have no image", without_image, "Remove them from the shards.")
    _refuse(root, "samples have no caption", without_caption, "Remove them from the shards, or give another key.")

    def load(index: int) -> np.ndarray:
        name, content = places[index].shard / ids[index], places[index].read()
        return read_image(name, image_size, content, exif_orientation=exif_orientation)

    return _source("webdataset", image_size, ids, captions, load)


def _caption(shard: Path, key: str, files: Files, caption_key: str | None) -> str:
    """The caption of a sample, stripped; empty if it has none."""
    if caption_key is None and ".txt" in files:
        name = shard / f"{key}.txt"
        return decode_text(place_of(shard, files[".txt"]).read_text(name), name).strip()
    if ".json" not in files:
        return ""
    name = shard / f"{key}.json"
    try:
        content = parse_json(place_of(shard, files[".json"]).read_text(name))
    except ValueError as error:
        raise FileError(name, f"the file is damaged ({error}).") from None
    caption = content.get(caption_key or "caption") if isinstance(content, dict) else None
    return caption.strip() if isinstance(caption, str) else ""


def dataset_source(
    path: Path | str,
    image_size: int,
    *,
    split: str = "train",
    image_column: str = "image",
    caption_column: str = "text",
    exif_orientation: bool = True,
) -> ImageSource:
    """One split of a Hugging Face data set: what `save_to_disk` wrote, a folder that `load_dataset` reads, or a hub id.

    Raises:
        FileError: no such data set or split, or rows without a caption; and, when an image is loaded, one that is not
            there or cannot be read.
        ParameterError: no such column, or a column of another type.
    """
    data = open_dataset(path, split, image_column, caption_column)
    try:
        captions = list(data[caption_column])
    except UnicodeDecodeError as error:
        raise FileError(path, f"a text of the column '{caption_column}' is not UTF-8 ({error.reason}).") from None
    ids = [f"{split}/{row:06d}" for row in range(len(data))]
    empty = (i for i, c in zip(ids, captions, strict=True) if not isinstance(c, str) or not c.strip())
    _refuse(Path(path), "rows have no caption", empty, "Remove them from the data set.")

    def load(index: int) -> np.ndarray:
        name = Path(path) / ids[index]
        return load_row(data, image_column, index, name, image_size, exif_orientation=exif_orientation)

    return _source("dataset", image_size, ids, captions, load)
