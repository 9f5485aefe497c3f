"""How worker, trainer and beat write their logs: as text, or as JSON, one object a line.

Celery sets its handlers up, where and from which level its command line says; what they write is ours. In
JSON everything that a process says is a line of the log: Celery's last words, warnings, what a library
prints, and the exception that nobody catches. The ids that a line is about come from structlog's context:
the tasks bind them (`worker.tasks`, `worker.predicting.pipeline`), and a process is at one task at a time.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, NoReturn

import structlog
from celery import Celery
from celery.signals import after_setup_logger, after_setup_task_logger, celeryd_init
from celery.utils.log import get_multiprocessing_logger
from structlog.typing import EventDict, WrappedLogger

from jobs.errors import SettingsError
from jobs.settings import ENV_PREFIX, Settings
from jobs.urls import secrets_of

#: Whose lines are logged from the level that the command line says. Everybody else's begin at WARNING.
OURS: Final = ("celery", "jobs", "labelmill", "producer", "worker")

#: What a line may have beside its message: `extra` of ours, and nothing of what Celery puts there.
FIELDS: Final = ("job", "chunk", "model", "run", "images", "errors", "attempt", "seconds")

#: A password in a URL of which the settings know nothing.
_PASSWORD_IN_URL: Final = re.compile(r"(://[^\s/:@]*:)[^\s/@]+@")

#: The descriptor of stderr, whatever Celery has put in the place of `sys.stderr`.
_STDERR: Final = 2


def set_up_logs(app: Celery, settings: Settings) -> None:
    """From now on this process logs as the settings say. To be called before Celery sets its logging up."""
    redact = _redactor(settings)
    if settings.log_format == "text":
        _listen(lambda handler: handler.setFormatter(_Redacted(handler.formatter, redact)))
        return
    formatter = JsonFormatter(redact)
    early = logging.StreamHandler(sys.__stderr__)
    early.setFormatter(formatter)

    def take_over(handler: logging.Handler) -> None:
        handler.setFormatter(formatter)
        # From here on the root logger's handler has them.
        logging.getLogger("py.warnings").removeHandler(early)

    _listen(take_over)
    # Until Celery has set its handlers up, which it does after it has checked this and that.
    logging.lastResort = early
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").addHandler(early)
    _log_the_uncaught()

    def say(text: str) -> None:
        # Past Python's buffer: the signal may have come while that is being written.
        line = formatter.format(_record("celery.worker", logging.INFO, text))
        os.write(_STDERR, f"{line}\n".encode())

    _silence_banners(app, say)


def refuse_to_start(error: SettingsError) -> NoReturn:
    """Says what is wrong with the settings, and exits. What they say of the log is read as it is."""
    if os.environ.get(ENV_PREFIX + "LOG_FORMAT") == "json":
        line = JsonFormatter(str).format(_record("labelmill", logging.CRITICAL, str(error)))
    else:
        line = f"labelmill: {error}"
    sys.stderr.write(line + "\n")
    sys.exit(error.exit_code)


class JsonFormatter(structlog.stdlib.ProcessorFormatter):
    """Makes a JSON object of a record, in one line: time (UTC), level, logger, message, process, pid, the ids
    that are bound, what `FIELDS` names, and of an exception its traceback.
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
    """Another formatter's text without secrets."""

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


def _listen(take_over: Callable[[logging.Handler], None]) -> None:
    """Has each handler that Celery makes taken over, and the levels set. Not by the signal `setup_logging`:
    who answers that one has to do all of it, log file, levels and what is printed.
    """

    def set_up(logger: logging.Logger, loglevel: int, **_: Any) -> None:
        logger.setLevel(max(loglevel, logging.WARNING))
        for name in OURS:
            logging.getLogger(name).setLevel(loglevel)
        for handler in (*logger.handlers, *get_multiprocessing_logger().handlers):
            take_over(handler)

    def set_up_task_logger(logger: logging.Logger, **_: Any) -> None:
        for handler in logger.handlers:
            take_over(handler)

    after_setup_logger.connect(set_up, weak=False)
    after_setup_task_logger.connect(set_up_task_logger, weak=False)


def _log_the_uncaught() -> None:
    logger = logging.getLogger("labelmill")

    def uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        logger.critical("not caught: %s", repr(error), exc_info=(kind, error, trace))

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
    """What Celery prints past its own log becomes a line, or is left out."""
    import celery.apps.worker as celery_worker
    from celery.apps.beat import Beat

    class QuietBeat(Beat):  # type: ignore[misc]  # Celery has no types
        """Beat without a banner."""

        def run(self) -> None:
            self.quiet = True
            super().run()

    def be_quiet(instance: Any, **_: Any) -> None:
        instance.quiet = True

    app.Beat = app.subclass_with_self(QuietBeat)
    celeryd_init.connect(be_quiet, weak=False)
    # The words of its signals' handlers: that it shuts down, and what Ctrl-C does next.
    celery_worker.safe_say = lambda text, _file=None: say(str(text).strip())


def _record(logger: str, level: int, text: str) -> logging.LogRecord:
    return logging.LogRecord(logger, level, __file__, 0, text, None, None)
