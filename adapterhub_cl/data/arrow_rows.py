"""Rows from Arrow: Parquet files, directories written by `datasets`, datasets on the Hub. All imports are lazy.

Each function returns the rows and the class names of columns that hold class numbers.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapterhub_cl.errors import DataError, UnknownNameError, first_line

Table = tuple[list[dict[str, Any]], dict[str, tuple[str, ...]]]


def parse_parquet(raw: bytes, name: str) -> Table:
    """The rows of a Parquet file; class names come from the metadata that `datasets` writes.

    Raises:
        DataError: the bytes are not a Parquet file, or a truncated one.
    """
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        table = pyarrow.parquet.read_table(io.BytesIO(raw))
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{name}: not a readable Parquet file ({first_line(error)})", "write the file again") from error
    return table.to_pylist(), _class_names((table.schema.metadata or {}).get(b"huggingface", b""))


def _class_names(metadata: bytes) -> dict[str, tuple[str, ...]]:
    """Column → names of its classes, from what `datasets` writes into a Parquet file; other metadata say nothing."""
    try:
        features = json.loads(metadata)["info"]["features"].items()
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}
    return {
        column: tuple(names)
        for column, feature in features
        if isinstance(feature, Mapping) and feature.get("_type") == "ClassLabel"
        if isinstance(names := feature.get("names"), list) and names and all(isinstance(name, str) for name in names)
    }


def is_saved_dataset(directory: Path) -> bool:
    """Whether the directory was written by `save_to_disk`."""
    return (directory / "dataset_dict.json").is_file() or (directory / "dataset_info.json").is_file()


def read_saved_dataset(directory: Path, split: str) -> Table:
    """The rows of a directory written by `save_to_disk`.

    Raises:
        DataError: the directory cannot be read.
        UnknownNameError: it has several splits, but not this one.
    """
    import datasets

    try:
        loaded = datasets.load_from_disk(str(directory))
    except Exception as error:  # pyarrow and datasets have no common base class
        raise DataError(
            f"{directory}: cannot be loaded ({first_line(error)})", "write it again with save_to_disk"
        ) from error
    return _table(_pick(loaded, split, str(directory)))


def read_hub_dataset(name: str, split: str) -> Table:
    """The rows of one split of a dataset on the Hub, `owner/name`.

    Raises:
        DataError: it does not exist, or there is no network.
    """
    import datasets

    try:
        loaded = datasets.load_dataset(name)
    except Exception as error:  # network, Hub and builder errors have no common base class
        raise DataError(
            f"{name}: no such file, and no dataset of this name could be loaded from the Hub ({first_line(error)})",
            "check the path; for a dataset on the Hub: check the name and the network (HF_HUB_OFFLINE unset)",
        ) from error
    return _table(_pick(loaded, split, name))


def _pick(loaded: Any, split: str, name: str) -> Any:
    if not isinstance(loaded, Mapping):
        return loaded
    if split in loaded:
        return loaded[split]
    if split == "train" and len(loaded) == 1:
        return next(iter(loaded.values()))
    raise UnknownNameError(f"split of {name}", split, loaded, f"for example {name}:{next(iter(loaded), 'train')}")


def _table(dataset: Any) -> Table:
    names = {
        column: tuple(feature.names)
        for column, feature in dataset.features.items()
        if type(feature).__name__ == "ClassLabel"
    }
    return dataset.to_list(), names
