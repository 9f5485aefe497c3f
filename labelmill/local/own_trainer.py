"""Execute one training run in this process, for a machine on which no trainer runs."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import Final, Self

from jobs.errors import Unavailable
from jobs.settings import Settings
from labelmill.console.signals import sigterm_like_ctrl_c

#: How long a cancelled training may go on: until its heartbeat notices, and its present step ends.
_STOP_SECONDS: Final = 30.0


class OwnTrainer:
    """A context manager that executes a run in a thread, so that the main thread can follow it.

    The run's row records how it ended. On SIGTERM, the block gets KeyboardInterrupt, as on Ctrl-C.
    """

    def __init__(self, settings: Settings, run_id: str) -> None:
        self._settings = settings
        self._run_id = run_id
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._execute, name="trainer", daemon=True)
        self._signals = ExitStack()

    def __enter__(self) -> Self:
        self._signals.enter_context(sigterm_like_ctrl_c())
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(_STOP_SECONDS)
        self._signals.close()

    def check_running(self) -> None:
        """Raise Unavailable if the thread has failed: call it only while the run has not finished.

        If it has ended without an error, the trainer of a stack that was just starting has claimed the run.
        """
        if not self._thread.is_alive() and self._error is not None:
            raise Unavailable(f"The training has ended without a result: {self._error}. Start it again.")

    def _execute(self) -> None:
        from worker.learning.task import execute_run

        try:
            execute_run(self._run_id, self._settings)
        except BaseException as error:
            self._error = error
