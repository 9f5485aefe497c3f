"""What a command makes of signals."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def sigterm_like_ctrl_c() -> Iterator[None]:
    """Within it who is told to stop ends in order, as on Ctrl-C: by a KeyboardInterrupt. Only in the main
    thread.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
