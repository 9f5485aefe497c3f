"""How commands handle signals."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def sigterm_like_ctrl_c() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM inside this block, as on Ctrl-C. Only for the main thread."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
