"""Sources of images with classes that are no plain folder: data sets in the formats of Hugging Face and webdataset
tars, as ImageNet comes in both. A class is a number there, and ImageNet's numbers are those that LlamaGen was trained
with: the sorted names of the folders (wordnet ids), 0 to 999.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vapi_core.data.hub import load_row, open_dataset
from vapi_core.data.image_files import image_suffixes
from vapi_core.data.shards import Files, Place, find_shards, place_of, read_samples
from vapi_core.data.sources import ImageSource, read_image
from vapi_core.errors import FileError, ParameterError, quoted, shortened
from vapi_core.files import parse_json, require_utf8_name

NO_CLASS = -1  # as data sets on the hub have it


def labelled_dataset_source(
    path: Path | str,
    image_size: int,
    *,
    split: str,
    image_column: str,
    label_column: str,
    exif_orientation: bool = True,
) -> ImageSource:
    """One split of a Hugging Face data set, on disk or on the hub, e.g. "ILSVRC/imagenet-1k".

    Raises:
        FileError: no such data set or split, or rows without a class; and, when an image is loaded, one that is not
            there or cannot be read.
        ParameterError: no such column, or a column of another type.
    """
    import datasets

    data = open_dataset(path, split, image_column, label_column)
    feature = data.features[label_column]
    column = data.select_columns([label_column]).with_format("arrow")[:][label_column]
    known = column.drop_null().to_numpy()
    if known.ndim != 1 or not np.issubdtype(known.dtype, np.integer):
        problem = f"the column {quoted(label_column)} of {path} holds no class numbers ({shortened(str(feature))})."
        raise ParameterError("subset.dataset.target_column", problem)
    ids = [f"{split}/{row:07d}" for row in range(len(column))]
    labels = np.full(len(column), NO_CLASS, dtype=np.int64)
    has_class = ~column.is_null().to_numpy()
    labels[has_class] = known.astype(np.int64)  # beyond 2^63 negative, and so refused too
    names = feature.names if isinstance(feature, datasets.ClassLabel) else None
    classes = _classes(Path(path), ids, labels, names)
    return ImageSource(
        name="dataset",
        image_size=image_size,
        classes=classes,
        ids=tuple(ids),
        labels=labels,
        load=lambda index: load_row(
            data, image_column, index, Path(path) / ids[index], image_size, exif_orientation=exif_orientation
        ),
    )


def labelled_webdataset_source(root: Path | str, image_size: int, *, exif_orientation: bool = True) -> ImageSource:
    """The samples of all .tar shards of a folder: an image, and its class in a .cls file or as "label" of a .json file.

    Raises:
        FileError: no shards, a shard that is damaged or cut off, or samples without an image or a class; and, when an
            image is loaded, one that cannot be read.
    """
    root = Path(root)
    ids: list[str] = []
    labels: list[int] = []
    places: list[Place] = []
    for shard in find_shards(root):
        for key, files in read_samples(shard):
            image = next((file for suffix, file in files.items() if suffix in image_suffixes()), None)
            if image is None:
                raise FileError(shard / key, "the sample has no image.", "Remove it from the shard.")
            ids.append(f"{shard.stem}/{key}")
            labels.append(_label(shard, key, files))
            places.append(place_of(shard, image))
    numbers = np.array(labels, dtype=np.int64)
    return ImageSource(
        name="webdataset",
        image_size=image_size,
        classes=_classes(root, ids, numbers, None),
        ids=tuple(ids),
        labels=numbers,
        load=lambda index: read_image(
            places[index].shard / ids[index], image_size, places[index].read(), exif_orientation=exif_orientation
        ),
    )


def _label(shard: Path, key: str, files: Files) -> int:
    problem = "the sample has no class: a .cls file with its number, or a .json file with the entry label."
    try:
        if ".cls" in files:
            return _bounded(int(place_of(shard, files[".cls"]).read_text(shard / f"{key}.cls").decode("utf-8-sig")))
        if ".json" in files:
            content: Any = parse_json(place_of(shard, files[".json"]).read_text(shard / f"{key}.json"))
            label = content.get("label") if isinstance(content, dict) else None
            if isinstance(label, int) and not isinstance(label, bool):
                return _bounded(label)
    except ValueError as error:
        problem = f"the class cannot be read ({error})."
    raise FileError(shard / key, problem)


def _bounded(label: int) -> int:
    if abs(label) >= 2**63:
        raise ValueError(f"it has {len(str(abs(label)))} digits")
    return label


def _classes(where: Path, ids: Sequence[str], labels: np.ndarray, names: Sequence[str] | None) -> tuple[str, ...]:
    """Names of the classes; numbers where the data has none.

    Raises:
        FileError: an image has no class; a class has a name that is not UTF-8; numbers without names go beyond the
            number of images, so that they are ids of something and no classes 0 to N-1.
    """
    if not len(labels):
        raise FileError(where, "there are no images in it.")
    unknown = np.flatnonzero((labels < 0) | (labels >= len(names) if names is not None else False))
    if unknown.size:
        raise FileError(
            where,
            f"{unknown.size} images have no class, {ids[unknown[0]]} first.",
            "Test splits often have none: take another split.",
        )
    if names is not None:
        for name in names:
            require_utf8_name(name, where)
        return tuple(names)
    highest = int(np.argmax(labels))
    if labels[highest] >= len(labels):
        raise FileError(
            where,
            f"the class of {ids[highest]} is {labels[highest]}, but there are only {len(labels)} images.",
            "Class numbers begin at 0 and leave out none: number them anew.",
        )
    return tuple(map(str, range(int(labels[highest]) + 1)))
