"""TensorFlow and Keras, started our way: quiet, on their defaults, and writing nothing outside our folders.

Everything that needs them takes them from here. Importing this file costs seconds and starts threads that
do not survive a fork: nothing a producer, the console command or a Celery parent imports may reach it.
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

from jobs.cores import usable_cores

# Keras reads keras.json from this folder and writes one where there is none. On the null device it can do
# neither: a file in someone's home can't change our number formats, and nothing is left behind there.
os.environ.setdefault("KERAS_HOME", os.devnull)
os.environ["KERAS_BACKEND"] = "tensorflow"
# 3 silences "no GPU here" on every machine without one. What goes wrong still arrives as an exception.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

_CPU_INFO = Path("/proc/cpuinfo")

# TensorFlow's libraries say these two things before they read TF_CPP_MIN_LOG_LEVEL.
_NOISE = re.compile(rb"WARNING: All log messages before absl|I\d{4} ")


@contextmanager
def _without_noise() -> Iterator[None]:
    """Hold back what the libraries write to file descriptor 2, then let through all that is not noise."""
    try:
        stderr = os.dup(2)
    except OSError:  # a daemon whose stderr is closed: nobody to spare
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


# What Keras imports where it finds it (mlxtend brings it along) for plots and wrappers nobody here uses: it
# doubles the time to start, and matplotlib writes into the home folder.
_UNWANTED = ("matplotlib", "pandas", "sklearn")


@contextmanager
def _without_extras() -> Iterator[None]:
    """Let Keras find its optional companions not installed."""
    modules: dict[str, Any] = sys.modules
    absent = [name for name in _UNWANTED if name not in modules]
    modules.update(dict.fromkeys(absent))  # None makes an import raise ModuleNotFoundError
    try:
        yield
    finally:
        for name in absent:
            del modules[name]


with _without_noise(), _without_extras():
    import keras
    import tensorflow as tf

__all__ = ["configure_threads", "keras", "multiplies_bfloat16", "tf"]


def multiplies_bfloat16() -> bool:
    """Whether this machine's processor multiplies bfloat16 by itself (AMX or AVX-512, on Linux). Where it
    does not, TensorFlow takes longer with that than with float32. Of a GPU it is not known.
    """
    if tf.config.list_physical_devices("GPU"):
        return False
    try:
        flags = set(_CPU_INFO.read_bytes().split())
    except OSError:
        return False
    return not flags.isdisjoint((b"amx_bf16", b"avx512_bf16"))


def configure_threads(processes: int) -> None:
    """Share the cores among `processes` such processes, and let a GPU's memory grow only as it is used.

    Without it every process starts a thread per core, and `processes` x cores threads fight over the cores.
    To be called before the first computation; again with the same answer does nothing.
    Raises RuntimeError if TensorFlow already runs with another number of threads.
    """
    set_threads(max(1, usable_cores() // processes))


def set_threads(intra_op: int) -> None:
    """Use `intra_op` threads within one operation, and one operation at a time."""
    threading = tf.config.threading
    wanted = (intra_op, 1)
    if (threading.get_intra_op_parallelism_threads(), threading.get_inter_op_parallelism_threads()) == wanted:
        return
    threading.set_intra_op_parallelism_threads(intra_op)
    threading.set_inter_op_parallelism_threads(1)
    for gpu in tf.config.list_physical_devices("GPU"):
        # The default takes the whole card at once, and a second process finds nothing left.
        tf.config.experimental.set_memory_growth(gpu, True)
