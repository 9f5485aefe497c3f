"""How commands handle signals."""

from __future__ import annotations

import ctypes
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

#: Loaded here, because a child must not load a library between fork and exec.
_libc: Final = ctypes.CDLL(None)

_PR_SET_PDEATHSIG: Final = 1


def die_with_parent() -> None:
    """Make Linux stop this process with SIGTERM if its parent is killed."""
    if sys.platform == "linux":
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@contextmanager
def sigterm_like_ctrl_c() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM inside this block, as on Ctrl-C. Only for the main thread."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
