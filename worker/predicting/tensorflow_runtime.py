"""Import TensorFlow and Keras quietly, with their default settings, writing nothing outside our folders.

Import both from here only. This takes seconds and starts threads that do not survive a fork, so producers,
the console command and the Celery parent must never import this module, not even indirectly.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jobs.cores import threads_per_process

# Keras reads keras.json from this folder, or creates it. With the null device it can do neither, so a file in
# a user's home folder cannot change our number formats, and none is created there.
os.environ.setdefault("KERAS_HOME", os.devnull)
os.environ["KERAS_BACKEND"] = "tensorflow"
# Level 3 silences the messages about a missing GPU. Errors are still raised as exceptions.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

_CPU_INFO = Path("/proc/cpuinfo")

# TensorFlow's libraries print these lines before they read TF_CPP_MIN_LOG_LEVEL.
_NOISE = re.compile(rb"WARNING: All log messages before absl|I\d{4} ")


@contextmanager
def _filtered_stderr() -> Iterator[None]:
    """Buffer what the libraries write to file descriptor 2, then write all of it except the noise."""
    try:
        stderr = os.dup(2)
    except OSError:  # a daemon without stderr: nothing to filter
        yield
        return
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            held.seek(0)
            os.write(2, b"".join(line for line in held if not _NOISE.match(line)))


# Keras imports these if they are installed (mlxtend requires them), for plots and wrappers that are not used
# here. They double the start-up time, and matplotlib writes to the home folder.
_HIDDEN_MODULES = ("matplotlib", "pandas", "sklearn")


@contextmanager
def _optional_modules_hidden() -> Iterator[None]:
    """Make Keras's optional dependencies look as if they were not installed."""
    modules: dict[str, Any] = sys.modules
    absent = [name for name in _HIDDEN_MODULES if name not in modules]
    modules.update(dict.fromkeys(absent))  # None makes an import raise ModuleNotFoundError
    try:
        yield
    finally:
        for name in absent:
            del modules[name]


with _filtered_stderr(), _optional_modules_hidden():
    import keras
    import tensorflow as tf

# Networks of many shapes are traced once each. It is nothing that a reader of the log could change.
tf.get_logger().addFilter(lambda record: "triggered tf.function retracing" not in record.getMessage())

__all__ = ["configure_threads", "keras", "multiplies_bfloat16", "tf"]


def multiplies_bfloat16() -> bool:
    """Return whether this machine's processor multiplies bfloat16 natively (AMX or AVX-512, on Linux).

    Otherwise TensorFlow is slower with bfloat16 than with float32. On a machine with a GPU it returns False,
    because its speed with bfloat16 is not known.
    """
    if tf.config.list_physical_devices("GPU"):
        return False
    try:
        flags = set(_CPU_INFO.read_bytes().split())
    except OSError:
        return False
    return not flags.isdisjoint((b"amx_bf16", b"avx512_bf16"))


def configure_threads(processes: int) -> None:
    """Use this process's share of the cores, and let a GPU's memory grow as needed.

    Otherwise each of the `processes` processes would start a thread per core, far too many together. Call it
    before the first computation. Raises RuntimeError if TensorFlow already runs with another number of
    threads.
    """
    set_threads(threads_per_process(processes))


def set_threads(intra_op: int) -> None:
    """Use `intra_op` threads within one operation, and one operation at a time."""
    threading = tf.config.threading
    wanted = (intra_op, 1)
    if (threading.get_intra_op_parallelism_threads(), threading.get_inter_op_parallelism_threads()) == wanted:
        return
    threading.set_intra_op_parallelism_threads(intra_op)
    threading.set_inter_op_parallelism_threads(1)
    for gpu in tf.config.list_physical_devices("GPU"):
        # By default the first process takes all memory of the GPU, and none is left for a second one.
        tf.config.experimental.set_memory_growth(gpu, True)
