"""Data sets in the formats of Hugging Face: a folder, or an id on the hub. Rows are memory-mapped; images stay encoded
until they are asked for."""

import re
from pathlib import Path
from typing import Any

from vapi_core.data.sources import read_image
from vapi_core.errors import FileError, ParameterError, quoted, shortened

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w.-]+)?")  # owner/name, perhaps with a revision


def is_hub_id(path: Path | str) -> bool:
    """Whether this is an id on the hub, and no folder of that name lies here."""
    return HUB_ID.fullmatch(str(path)) is not None and not Path(path).exists()


def open_dataset(path: Path | str, split: str, image_column: str, column: str) -> Any:
    """One split as a `datasets.Dataset` whose images are not decoded: {"bytes": ..., "path": ...}.

    Args:
        path: what `save_to_disk` wrote, a folder that `load_dataset` reads, or a hub id "owner/name" or
            "owner/name@revision", which `datasets` downloads to its cache.
        column: another column that is needed.

    Raises:
        FileError: no such data set or split.
        ParameterError: no such column, or no images in it.
    """
    import datasets

    place = Path(path)
    try:
        if is_hub_id(path):
            name, _, revision = str(path).partition("@")
            data = datasets.load_dataset(name, revision=revision or None)
        elif not place.is_dir():
            raise FileError(place, "there is no such folder.")
        elif (place / "state.json").is_file() or (place / "dataset_dict.json").is_file():
            data = datasets.load_from_disk(str(path))
        else:
            data = datasets.load_dataset(str(path))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).strip().partition("\n")[0]
        remedy = "Is there a network, and access to it (`hf auth login`)?" if is_hub_id(path) else ""
        raise FileError(place, f"the data set cannot be read ({shortened(reason)}).", remedy) from None
    if isinstance(data, dict):
        if split not in data:
            raise FileError(
                place, f"there is no split {quoted(split)} in it, only {shortened(', '.join(map(str, data)))}."
            )
        data = data[split]
    for parameter, name in (("subset.dataset.image_column", image_column), ("subset.dataset.target_column", column)):
        if name not in data.column_names:
            raise ParameterError(
                parameter, f"{path} has no column {quoted(name)}, only {shortened(', '.join(data.column_names))}."
            )
    if not isinstance(data.features[image_column], datasets.Image):
        raise ParameterError(
            "subset.dataset.image_column", f"the column {quoted(image_column)} of {path} does not hold images."
        )
    return data.cast_column(image_column, datasets.Image(decode=False))


def load_row(
    data: Any, image_column: str, index: int, image_id: Path, image_size: int, *, exif_orientation: bool
) -> Any:
    """The image of a row, uint8 [S, S, 3]; `image_id` names it in messages. Raises FileError."""
    image = data[index][image_column]
    if image is None or (image["bytes"] is None and image["path"] is None):
        raise FileError(image_id, "the row has no image.", "Remove it from the data set.")
    content = image["bytes"]
    path = Path(image["path"]) if content is None else image_id
    return read_image(path, image_size, content, exif_orientation=exif_orientation)
