"""The format `parquet`: one table with the columns `image` and `label`, as in the data sets of
Hugging Face. It needs pyarrow."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from synth.base.errors import SynthError
from synth.base.files import regular
from synth.base.pictures import Encoded, read_pictures, to_png
from synth.formats import Chunks, Format, Found, Labels, number

FILE = "data/train-00000-of-00001.parquet"
IMAGES = ("image", "img", "images", "picture")  # usual names of a column
LABELS = ("label", "labels", "fine_label", "target", "class")
BATCH = 1000  # rows decoded at once


def _arrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise SynthError("parquet: needs the package pyarrow; install it") from error
    return pyarrow


def write(folder: Path, chunks: Chunks, count: int, labels: Labels, classes: Sequence[str]) -> None:
    """Writes one row group for each chunk. An image is a struct of its PNG file and a name."""
    arrow = _arrow()
    fields = [("image", arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())]))]
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    if labels is not None:
        fields.append(("label", arrow.int64()))
        features["label"] = {"names": list(classes), "_type": "ClassLabel"}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    path, at = folder / FILE, 0
    path.parent.mkdir(exist_ok=True)
    schema = arrow.schema(fields, metadata)
    with arrow.parquet.ParquetWriter(path, schema) as writer:
        for chunk in chunks:
            pictures = [
                {"bytes": png, "path": f"{at + index:07d}.png"}
                for index, png in enumerate(to_png(chunk))
            ]
            columns: dict[str, Any] = {"image": pictures}
            if labels is not None:
                columns["label"] = labels[at : at + len(chunk)]
            writer.write_table(arrow.table(columns, schema=schema))
            at += len(chunk)


def read(folder: Path, classes: Sequence[str]) -> tuple[np.ndarray, Labels]:
    found = read_files([folder / FILE])
    return found.images, found.labels


def read_files(paths: Sequence[Path], side: int | None = None) -> Found:
    """Any tables of this layout. Names of classes come from the schema of Hugging Face's
    `datasets`, if a table has one, or are the labels themselves, if these are texts."""
    arrow, names = _arrow(), None
    images: list[np.ndarray] = []
    labels: list[Any] = []
    for path in paths:
        try:
            with arrow.parquet.ParquetFile(regular(path)) as table:
                schema = table.schema_arrow
                image = _column(path, schema.names, IMAGES)
                label = next((name for name in LABELS if name in schema.names), None)
                names = names or _names(schema, label)
                columns = [image, *([label] if label else [])]
                for batch in table.iter_batches(BATCH, columns=columns):
                    cells = batch.column(image).to_pylist()
                    images.append(read_pictures(list(_pictures(path, cells, images)), side))
                    labels += batch.column(label).to_pylist() if label else []
        except OSError as error:
            reason = error.strerror or error
            raise SynthError(f"{path}: cannot be read ({reason})") from error
        except arrow.ArrowException as error:
            raise SynthError(f"{path}: is damaged or no parquet file ({error})") from error
    if not images:
        raise SynthError(f"{paths[0]}: holds no images")
    if len({part.shape[1:] for part in images}) > 1:
        raise SynthError(f"{paths[0]}: sizes of images differ; --resize makes them equal")
    pixels = np.concatenate(images)
    if len(labels) != len(pixels):
        return Found(pixels, None, None)
    if all(isinstance(label, str) for label in labels):
        return Found(pixels, *number(labels))
    if not all(isinstance(label, int) for label in labels):
        raise SynthError(f"{paths[0]}: {label} holds no whole numbers or texts in some rows")
    return Found(pixels, np.array(labels, np.int64), names)


def _column(path: Path, names: Sequence[str], wanted: Sequence[str]) -> str:
    for name in wanted:
        if name in names:
            return name
    raise SynthError(f"{path}: has the columns {', '.join(names)}, and none is named image")


def _names(schema: Any, label: str | None) -> tuple[str, ...] | None:
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return tuple(map(str, features[label]["names"]))
    except (KeyError, TypeError, ValueError):
        return None


def _pictures(path: Path, cells: list[Any], before: Sequence[Any]) -> Iterator[Encoded]:
    for index, cell in enumerate(cells):
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(data, bytes):
            raise SynthError(f"{path}: row {index} of batch {len(before)} holds no picture's bytes")
        yield Encoded(f"{path}, row {index} of batch {len(before)}", data)


FORMAT = Format(write, read, "one table, for pandas and Hugging Face datasets", FILE, "parquet")
