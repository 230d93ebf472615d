"""Sources of images with classes that are no plain folder: data sets in the formats of Hugging Face and webdataset tars, as
ImageNet comes in both. A class is a number there, and ImageNet's numbers are those that LlamaGen was trained with: the
sorted names of the folders (wordnet ids), 0 to 999.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vapi_core.data.hub import load_row, open_dataset
from vapi_core.data.shards import Files, Place, find_shards, place_of, read_samples
from vapi_core.data.sources import IMAGE_SUFFIXES, ImageSource, read_image
from vapi_core.errors import FileError, ParameterError, quoted, shortened


def labelled_dataset_source(
    path: Path | str, image_size: int, *, split: str, image_column: str, label_column: str
) -> ImageSource:
    """One split of a Hugging Face data set, on disk or on the hub, e.g. "ILSVRC/imagenet-1k".

    Raises:
        FileError: no such data set or split, or rows without a class; and, when an image is loaded, one that is not there
            or cannot be read.
        ParameterError: no such column, or a column of another type.
    """
    import datasets

    data = open_dataset(path, split, image_column, label_column)
    feature = data.features[label_column]
    labels = np.array(data.select_columns([label_column]).with_format("numpy")[:][label_column])
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        problem = f"the column {quoted(label_column)} of {path} holds no class numbers ({shortened(str(feature))})."
        raise ParameterError("subset.dataset.target_column", problem)
    ids = [f"{split}/{row:07d}" for row in range(len(labels))]
    names = feature.names if isinstance(feature, datasets.ClassLabel) else None
    classes = _classes(Path(path), ids, labels, names)
    return ImageSource(
        name="dataset",
        image_size=image_size,
        classes=classes,
        ids=tuple(ids),
        labels=labels.astype(np.int64),
        load=lambda index: load_row(data, image_column, index, Path(path) / ids[index], image_size),
    )


def labelled_webdataset_source(root: Path | str, image_size: int) -> ImageSource:
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
            image = next((file for suffix, file in files.items() if suffix in IMAGE_SUFFIXES), None)
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
        load=lambda index: read_image(places[index].shard / ids[index], image_size, places[index].read()),
    )


def _label(shard: Path, key: str, files: Files) -> int:
    problem = "the sample has no class: a .cls file with its number, or a .json file with the entry label."
    try:
        if ".cls" in files:
            return int(place_of(shard, files[".cls"]).read())
        content: Any = json.loads(place_of(shard, files[".json"]).read()) if ".json" in files else None
        if isinstance(content, dict) and isinstance(content.get("label"), int):
            return content["label"]
    except ValueError as error:
        problem = f"the class cannot be read ({error})."
    raise FileError(shard / key, problem)


def _classes(where: Path, ids: Sequence[str], labels: np.ndarray, names: Sequence[str] | None) -> tuple[str, ...]:
    """Names of the classes; numbers where the data has none. Raises FileError where an image has no class."""
    if not len(labels):
        raise FileError(where, "there are no images in it.")
    unknown = np.flatnonzero((labels < 0) | (labels >= len(names) if names is not None else False))
    if unknown.size:
        raise FileError(
            where,
            f"{unknown.size} images have no class, {ids[unknown[0]]} first.",
            "Test splits often have none: take another split.",
        )
    return tuple(names) if names is not None else tuple(map(str, range(int(labels.max()) + 1)))
