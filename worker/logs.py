"""Format the logs of worker, trainer and beat: as text, or as JSON with one object per line.

Celery sets up the handlers as its command line says; this module decides what they write. In JSON, all output
of a process is log lines, including Celery's shutdown messages, warnings, and uncaught exceptions. The ids in
a line come from structlog's context, to which the tasks bind them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import threading
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, NoReturn

import structlog
from celery import Celery
from celery.exceptions import SecurityWarning
from celery.signals import after_setup_logger, after_setup_task_logger, celeryd_init
from celery.utils.log import get_multiprocessing_logger
from structlog.typing import EventDict, WrappedLogger

from jobs.errors import SettingsError
from jobs.network.urls import secrets_of
from jobs.settings import ENV_PREFIX, Settings

#: The loggers that use the command line's level. All others log from WARNING on.
OURS: Final = ("celery", "jobs", "labelmill", "producer", "worker")

#: The fields that a line may have besides its message. Celery's own additions are left out.
FIELDS: Final = ("job", "chunk", "trace", "model", "run", "images", "errors", "attempt", "seconds")

#: A password in a URL, for URLs that are not in the settings.
_PASSWORD_IN_URL: Final = re.compile(r"(://[^\s/:@]*:)[^\s/@]+@")

#: The file descriptor of stderr, which stays valid if Celery replaces `sys.stderr`.
_STDERR: Final = 2


def set_up_logs(app: Celery, settings: Settings) -> None:
    """Make this process log as the settings say. Call it before Celery sets up its logging."""
    # Celery warns against running as root because of pickle, which no worker here accepts.
    warnings.simplefilter("ignore", SecurityWarning)
    redact = _redactor(settings)
    if settings.log_format == "text":
        _configure_handlers(lambda handler: handler.setFormatter(_Redacted(handler.formatter, redact)))
        return
    formatter = JsonFormatter(redact)
    early = logging.StreamHandler(sys.__stderr__)
    early.setFormatter(formatter)

    def configure(handler: logging.Handler) -> None:
        handler.setFormatter(formatter)
        # From here on the root logger's handler logs warnings.
        logging.getLogger("py.warnings").removeHandler(early)

    _configure_handlers(configure)
    # `early` logs until Celery has set up its handlers, after some checks of its own.
    logging.lastResort = early
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").addHandler(early)
    _log_uncaught()

    def say(text: str) -> None:
        # Bypass Python's buffer, because the signal may have interrupted a write to it. Ignore a closed pipe:
        # an exception in a signal handler would end the worker.
        line = formatter.format(_record("celery.worker", logging.INFO, text))
        with contextlib.suppress(OSError):
            os.write(_STDERR, f"{line}\n".encode())

    _silence_banners(app, say)


def log_to_stderr(settings: Settings) -> None:
    """Make a process that is not Celery's log to stderr, as the settings say."""
    redact = _redactor(settings)
    handler = logging.StreamHandler()
    if settings.log_format == "json":
        handler.setFormatter(JsonFormatter(redact))
    else:
        handler.setFormatter(_Redacted(logging.Formatter("%(asctime)s %(levelname)s %(message)s"), redact))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    for name in OURS:
        logging.getLogger(name).setLevel(logging.INFO)


def refuse_to_start(error: SettingsError) -> NoReturn:
    """Report what is wrong with the settings, and exit. The log format is read from the environment."""
    if os.environ.get(ENV_PREFIX + "LOG_FORMAT") == "json":
        line = JsonFormatter(str).format(_record("labelmill", logging.CRITICAL, str(error)))
    else:
        line = f"labelmill: {error}"
    sys.stderr.write(line + "\n")
    sys.exit(error.exit_code)


class JsonFormatter(structlog.stdlib.ProcessorFormatter):
    """Format a record as a JSON object on one line.

    Its keys are time (UTC), level, logger, message, process, pid, the bound ids, the `FIELDS`, and exception.
    """

    def __init__(self, redact: Callable[[str], str]) -> None:
        def shape(_logger: WrappedLogger, _method: str, found: EventDict) -> EventDict:
            record: logging.LogRecord = found.pop("_record")
            del found["_from_structlog"]
            time = datetime.fromtimestamp(record.created, UTC)
            return {
                "time": time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
                "level": record.levelname.lower(),
                "logger": record.name,
                "message": redact(found.pop("event")),
                "process": record.processName,
                "pid": record.process,
            } | {name: redact(value) if isinstance(value, str) else value for name, value in found.items()}

        super().__init__(
            foreign_pre_chain=[
                structlog.contextvars.merge_contextvars,
                structlog.stdlib.ExtraAdder(allow=FIELDS),
                structlog.processors.format_exc_info,
            ],
            processors=[shape, structlog.processors.JSONRenderer()],
        )


class _Redacted(logging.Formatter):
    """Format like another formatter, but redact secrets."""

    def __init__(self, inner: logging.Formatter | None, redact: Callable[[str], str]) -> None:
        super().__init__()
        self._inner = inner or logging.Formatter()
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        return self._redact(self._inner.format(record))


def _redactor(settings: Settings) -> Callable[[str], str]:
    secrets = secrets_of(settings.ledger_url, settings.broker_url, settings.store_url)

    def redact(text: str) -> str:
        for secret in secrets:
            text = text.replace(secret, "***")
        return _PASSWORD_IN_URL.sub(r"\1***@", text) if "@" in text else text

    return redact


def _configure_handlers(configure: Callable[[logging.Handler], None]) -> None:
    """Call `configure` with each handler that Celery makes, and set the levels.

    The signal `setup_logging` is not used: its receiver would have to do all of Celery's set-up.
    """

    def set_up(logger: logging.Logger, loglevel: int, **_: Any) -> None:
        logger.setLevel(max(loglevel, logging.WARNING))
        for name in OURS:
            logging.getLogger(name).setLevel(loglevel)
        for handler in (*logger.handlers, *get_multiprocessing_logger().handlers):
            configure(handler)

    def set_up_task_logger(logger: logging.Logger, **_: Any) -> None:
        for handler in logger.handlers:
            configure(handler)

    after_setup_logger.connect(set_up, weak=False)
    after_setup_task_logger.connect(set_up_task_logger, weak=False)


def _log_uncaught() -> None:
    logger = logging.getLogger("labelmill")

    def uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        logger.critical("uncaught exception: %s", repr(error), exc_info=(kind, error, trace))

    def uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None:
            uncaught(args.exc_type, args.exc_value, args.exc_traceback)

    def unraisable(args: Any) -> None:
        what = f"{args.err_msg or 'ignored'}: {args.object!r}"
        logger.error(what, exc_info=(args.exc_type, args.exc_value, args.exc_traceback))

    sys.excepthook = uncaught
    threading.excepthook = uncaught_in_thread
    sys.unraisablehook = unraisable


def _silence_banners(app: Celery, say: Callable[[str], None]) -> None:
    """Log what Celery prints without its own log, or suppress it."""
    import celery.apps.worker as celery_worker
    from celery.apps.beat import Beat

    class QuietBeat(Beat):  # type: ignore[misc]  # Celery has no types
        """Run beat without a banner."""

        def run(self) -> None:
            self.quiet = True
            super().run()

    def be_quiet(instance: Any, **_: Any) -> None:
        instance.quiet = True

    app.Beat = app.subclass_with_self(QuietBeat)
    celeryd_init.connect(be_quiet, weak=False)
    # The signal handlers use this to print that the worker shuts down, and what another Ctrl-C does.
    celery_worker.safe_say = lambda text, _file=None: say(str(text).strip())


def _record(logger: str, level: int, text: str) -> logging.LogRecord:
    return logging.LogRecord(logger, level, __file__, 0, text, None, None)
