"""Download Keras's MNIST file, in a separate process that `worker.learning.mnist` can kill.

The URL and the SHA-256 come from Keras: its `mnist.py` is executed with a `get_file` that has a timeout,
which Keras's own lacks. Keras itself is not imported, because that would start TensorFlow, which takes
seconds.

    python download.py TARGET SILENCE_SECONDS
"""

from __future__ import annotations

import hashlib
import importlib.util
import signal
import sys
import types
from pathlib import Path
from typing import Any, Final
from urllib.request import urlopen

# Several times the real file's size: an endless response must not fill the disk.
_MAX_BYTES: Final = 64 * 2**20


class _Fetched(Exception):
    """The file is downloaded: stop Keras's loader."""


def fetch(target: Path, silence_seconds: int) -> None:
    """Write Keras's MNIST file, verified, to `target`.

    After `silence_seconds` without a byte, the process ends. The alarm has no handler on purpose: the kernel
    ends the process wherever it hangs, even in a name lookup, which Python's timeouts do not cover. Raises
    ValueError for a wrong file.
    """

    def get_file(_name: str = "", *, origin: str, file_hash: str, **_: Any) -> str:
        digest, size = hashlib.sha256(), 0
        signal.alarm(silence_seconds)
        with urlopen(origin) as answer, target.open("wb") as file:  # noqa: S310 (Keras's own address)
            while block := answer.read(2**16):
                signal.alarm(silence_seconds)
                size += len(block)
                if size > _MAX_BYTES:
                    raise ValueError("the downloaded file is far too large")
                digest.update(block)
                file.write(block)
        signal.alarm(0)
        if digest.hexdigest() != file_hash:
            raise ValueError("the downloaded file is not the one that Keras expects")
        raise _Fetched

    keras = importlib.util.find_spec("keras")
    if keras is None or not keras.submodule_search_locations:
        raise ModuleNotFoundError("Keras is not installed")
    _stand_in("keras.src.api_export", keras_export=lambda _path: lambda function: function)
    _stand_in("keras.src.utils.file_utils", get_file=get_file)
    source = Path(keras.submodule_search_locations[0], "src", "datasets", "mnist.py")
    spec = importlib.util.spec_from_file_location("mnist", source)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"{source} cannot be loaded")
    mnist = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mnist)
    try:
        mnist.load_data()
    except _Fetched:
        return
    raise RuntimeError("Keras did not ask for a file")


def _stand_in(name: str, **contents: Any) -> None:
    """Make `from <name> import ...` find `contents`, without importing the real module."""
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        parent = ".".join(parts[:depth])
        sys.modules.setdefault(parent, types.ModuleType(parent))
    vars(sys.modules[name]).update(contents)


if __name__ == "__main__":
    try:
        fetch(Path(sys.argv[1]), int(sys.argv[2]))
    except Exception as error:
        sys.exit(f"{error}")
