"""Files that are `.keras` by their format, made by hand: no Keras, and no model that computes anything."""

from __future__ import annotations

import io
import json
import zipfile
from typing import Any

HDF5 = b"\x89HDF\r\n\x1a\n"


def keras_file(marker: bytes = b"") -> bytes:
    """What the registry takes for a model; another one for each marker. Keras finds no weights in it."""
    return archive(members(weights=HDF5 + marker))


def members(
    config: dict[str, Any] | bytes | None = None, *, weights: bytes = HDF5, metadata: bytes = b"{}"
) -> dict[str, bytes]:
    """The three members of a `.keras` file, by name."""
    if config is None:
        config = sequential(layer("keras.layers", "Dense", units=10))
    return {
        "metadata.json": metadata,
        "config.json": config if isinstance(config, bytes) else json.dumps(config).encode(),
        "model.weights.h5": weights,
    }


def archive(contents: dict[str, bytes], *, compression: int = zipfile.ZIP_STORED) -> bytes:
    """A ZIP archive of these members."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as zipped:
        for name, data in contents.items():
            zipped.writestr(zipfile.ZipInfo(name), data, compress_type=compression)
    return file.getvalue()


def sequential(*layers: dict[str, Any]) -> dict[str, Any]:
    """The config of a model that is a row of layers."""
    return layer("keras", "Sequential", name="mlp", layers=list(layers))


def layer(module: str | None, class_name: str, /, **config: Any) -> dict[str, Any]:
    """The config of a layer, or of anything else that Keras builds."""
    return {"module": module, "class_name": class_name, "config": config, "registered_name": None}


def function(module: str | None, name: Any, *, registered: str | None = None) -> dict[str, Any]:
    """The config of a function that is named, such as an activation."""
    return {"module": module, "class_name": "function", "config": name, "registered_name": registered}
