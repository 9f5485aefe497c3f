"""Check a model's file without Keras: it must be a `.keras` archive of known layers and nothing else.

Loading a model builds every class that its config names. Classes that run code (`Lambda`), open files
(`StringLookup`, `TFSMLayer`) or call any function of Keras have repeatedly led to code execution:
CVE-2025-1550, -8747, -9905, -9906, -12058, CVE-2026-0897, -1462, -1669. So only what is listed here and in
`jobs.models.keras_names` may be in a file, and that is checked before Keras parses it. Keras's own safe mode
applies as well.

How a model was compiled matters only to its training. It often names custom code, so it is not checked and
must never be loaded: see `find_compiled_parts`.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any, Final

from jobs.errors import ModelRefused
from jobs.models.keras_names import APPLICATION_LAYERS, LAYERS, OPERATIONS

_MEMBERS: Final = {"metadata.json", "config.json", "model.weights.h5"}

#: The limit for `config.json` and `metadata.json`. The config of a network of a hundred layers has 100 kB.
_MAX_JSON_BYTES: Final = 4 * 1024 * 1024

#: The exceptions that zipfile raises for broken archives.
_ZIP_ERRORS: Final = (
    zipfile.BadZipFile,
    ArithmeticError,  # for an offset that is out of range
    EOFError,
    NotImplementedError,
    OSError,
    RuntimeError,
    ValueError,
)

#: Weights are copied in pieces of this size.
_COPY_BYTES: Final = 1024 * 1024

_SAVE_AGAIN: Final = "Save the model again with Keras: `model.save('NAME.keras')`."

_ZIP: Final = b"PK\x03\x04"
_HDF5: Final = b"\x89HDF\r\n\x1a\n"

#: Modules whose classes may all be used: they hold numbers and formulas.
_MODULES: Final = (
    "keras.activations",
    "keras.constraints",
    "keras.initializers",
    "keras.regularizers",
)

_CLASSES: Final = {
    "keras": frozenset(("DTypePolicy", "Model", "Sequential")),
    "keras.src.models.functional": frozenset(("Functional",)),
    "keras.layers": LAYERS,
    **APPLICATION_LAYERS,
    **OPERATIONS,
}

#: Values that a config writes as objects without a module. Keras makes them from numbers and names only.
_VALUES: Final = frozenset(("__ellipsis__", "__keras_tensor__", "__numpy__", "__slice__", "__tensor__"))

#: The type of an array or tensor in a config, such as float32.
_DTYPE: Final = re.compile(r"[a-z]+[0-9]*")

_CLASS_NAME: Final = re.compile(r"[A-Z][A-Za-z0-9]*")

#: A built-in function, such as an activation, except those that look up another one by its name.
_FUNCTION_NAME: Final = re.compile(r"(?!(?:get|serialize|deserialize)$)[a-z][a-z0-9_]*")


def check_model_file(data: bytes) -> None:
    """Check that this is a `.keras` file of known layers and operations. Raises ModelRefused with the reason.

    How the model was compiled is ignored. Its weights are not inspected: Keras reads them as numbers, and
    refuses links to other files.
    """
    if data.startswith(_HDF5):
        raise _refused("It is an HDF5 file, not a .keras file; loading one can run code.")
    if not data.startswith(_ZIP):
        raise _refused("It is not a .keras file: it is not a ZIP archive.")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            _check_members(archive, len(data))
            with archive.open("model.weights.h5") as weights:
                if weights.read(len(_HDF5)) != _HDF5:
                    raise _refused("Its model.weights.h5 is not HDF5.")
            _read_json(archive, "metadata.json")
            config = _read_json(archive, "config.json")
            _drop_compilation(config)
            _check_config(config)
    except _ZIP_ERRORS as error:
        reason = str(error).strip().partition("\n")[0][:200]
        raise _refused(f"It is not a complete .keras file: {reason}.") from None


def find_compiled_parts(path: Path) -> dict[str, Any] | None:
    """Return the file's config without compile configurations, or None if no nested model has one.

    Keras loads those of nested models even with `compile=False`, which concerns only the outermost model.
    Raises ModelRefused, or what zipfile raises for a broken file.
    """
    with zipfile.ZipFile(path) as archive:
        config = _read_json(archive, "config.json")
    return config if _drop_compilation(config) else None


def copy_with_config(path: Path, copy: Path, config: dict[str, Any]) -> None:
    """Copy a `.keras` file with another config. Raises OSError, or what zipfile raises for a broken file."""
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(copy, "w", zipfile.ZIP_STORED) as copied:
        copied.writestr("metadata.json", archive.read("metadata.json"))
        copied.writestr("config.json", json.dumps(config))
        with (
            archive.open("model.weights.h5") as weights,
            copied.open("model.weights.h5", "w", force_zip64=True) as target,
        ):
            shutil.copyfileobj(weights, target, _COPY_BYTES)


def _drop_compilation(config: dict[str, Any]) -> bool:
    """Remove all compile configurations from a model's config. Return whether nested models had any."""
    config.pop("compile_config", None)
    nested = False
    waiting: list[Any] = [config]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            nested = value.pop("compile_config", None) is not None or nested
            waiting += value.values()
    return nested


def _check_members(archive: zipfile.ZipFile, size: int) -> None:
    """Check that the members are Keras's three, uncompressed. Raises ModelRefused.

    Uncompressed members cannot expand.
    """
    members = archive.infolist()
    names = [member.filename for member in members]
    if len(names) != len(_MEMBERS) or set(names) != _MEMBERS:
        raise _refused(
            f"It does not consist of {', '.join(sorted(_MEMBERS))}, each once: it is a SavedModel, or a "
            ".keras file with additional members."
        )
    for member in members:
        stored = member.compress_type == zipfile.ZIP_STORED and not member.flag_bits & 1
        if not stored or member.file_size != member.compress_size:
            raise _refused(f"Its {member.filename} is compressed or encrypted; Keras stores it as is.")
    if sum(member.file_size for member in members) > size:
        raise _refused("Its members claim to be larger than the file.")


def _read_json(archive: zipfile.ZipFile, name: str) -> Any:
    if archive.getinfo(name).file_size > _MAX_JSON_BYTES:
        raise _refused(f"Its {name} has more than {_MAX_JSON_BYTES:,} bytes.")
    try:
        found = json.loads(archive.read(name))
    except (ValueError, RecursionError):
        raise _refused(f"Its {name} is not JSON, or is nested too deeply.") from None
    if not isinstance(found, dict):
        raise _refused(f"Its {name} is not a JSON object.")
    return found


def _check_config(config: dict[str, Any]) -> None:
    """Check that everything the config would build, at any depth, is listed. Raises ModelRefused."""
    if "class_name" not in config:
        raise _refused("Its config.json names no class.")
    waiting: list[Any] = [config]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            if "class_name" in value:
                _check_object(value)
            waiting += value.values()


def _check_object(value: dict[str, Any]) -> None:
    """Check that this object of the config may be built. Raises ModelRefused."""
    module, name = value.get("module"), value["class_name"]
    if module is None and isinstance(name, str) and name in _VALUES:
        _check_value(name, value.get("config"))
        return
    # A function has its name in `config`, and may leave its module to Keras.
    named = value.get("config") if name == "function" else name
    if not (
        isinstance(module, str) and isinstance(named, str) and value.get("registered_name") in (None, named)
    ):
        known = False
    elif name == "function":
        known = module in (*_MODULES, "builtins") and _FUNCTION_NAME.fullmatch(named) is not None
    else:
        known = module in _MODULES and _CLASS_NAME.fullmatch(named) is not None
        known = known or named in _CLASSES.get(module, ())
    if not known:
        what = ".".join(str(part)[:60] for part in (module, named) if part)
        raise ModelRefused(
            f"Its config names {what}, which is not a layer or function that may be loaded. Only Keras's "
            "own layers and operations on tensors may be: build the model from these, copy the weights, and "
            "save it again."
        )


def _check_value(name: str, config: Any) -> None:
    """Check that the type of an array or tensor is a plain name, not `object`. Raises ModelRefused."""
    if name not in ("__numpy__", "__tensor__"):
        return
    dtype = config.get("dtype") if isinstance(config, dict) else None
    if not isinstance(dtype, str) or _DTYPE.fullmatch(dtype) is None or dtype == "object":
        raise _refused(f"Its config has a constant of the type {str(dtype)[:60]!r}, not of a number.")


def _refused(what: str) -> ModelRefused:
    """Return the error for a file that Keras did not write, or that is damaged."""
    return ModelRefused(f"{what} {_SAVE_AGAIN}")
