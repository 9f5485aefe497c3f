"""The logs of the local stack: a file for each part, and events for the lines that the user should see.

The parts log as JSON on a pipe (`worker.logs`). The broker is another project's program and logs as text.
"""

from __future__ import annotations

import json
import re
import subprocess
import threading
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any, Final

from jobs.files import append_privately, make_private_folder
from labelmill.console.terminal import pluralize

#: A log file that would grow beyond this is renamed to `<name>.1`, so a part keeps at most twice as much.
MAX_LOG_BYTES: Final = 8 * 1024**2

#: Matches the level and the text of a line that Valkey logs: `11:M 28 Nov 2026 04:57:18.915 # Some text`.
_BROKER_LINE: Final = re.compile(r"\d+:\w .* \d\d:\d\d:\d\d\.\d{3} ([.*#-]) (.*)")

#: Valkey's warnings that need no action: this broker saves nothing to disk, and ending it is normal.
_HARMLESS: Final = ("WARNING Memory overcommit must be enabled", "Valkey is now ready to exit")

#: Matches what worker, trainer and beat log when they have started.
_STARTED: Final = re.compile(r".* ready\.|beat: Starting\.\.\.")


@dataclass(frozen=True, slots=True)
class Event:
    """One line about one part of the stack."""

    part: str
    text: str
    level: str = "info"


class LogFile:
    """A log file that only its owner can read. Many threads may write to it.

    Not logging's RotatingFileHandler: it takes no bytes, and cannot go on after its file fails to close on a
    full disk.
    """

    def __init__(self, path: Path) -> None:
        """Open the file, and make its folder if necessary. Raises OSError."""
        self._path = path
        self._lock = threading.Lock()
        make_private_folder(path.parent)
        self._file = append_privately(path)
        self._bytes = path.stat().st_size

    def write(self, text: bytes) -> None:
        """Append the text. Rename the file first if it is full. Raises OSError."""
        with self._lock:
            if self._bytes and self._bytes + len(text) > MAX_LOG_BYTES:
                self._path.replace(f"{self._path}.1")
                full, self._file = self._file, append_privately(self._path)
                full.close()
                self._bytes = 0
            self._file.write(text)
            self._bytes += len(text)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class PartLog:
    """The log of one part, across restarts."""

    def __init__(self, part: str, folder: Path, *, as_json: bool, events: SimpleQueue[Event] | None) -> None:
        """Log to `<folder>/<part>.log`, as text unless `as_json`, and put the part's events into `events`.

        With `as_json`, each line of JSON is an event. Raises OSError.
        """
        self._part = part
        self._as_json = as_json
        self._events = events
        self._file = LogFile(folder / f"{part}.log")
        self._threads: list[threading.Thread] = []
        self._write_error_reported = False

    def follow(self, process: subprocess.Popen[bytes]) -> None:
        """Read the process's stdout, a pipe, in a thread until its last writer closes it."""
        thread = threading.Thread(
            target=self._read, args=(process.stdout,), name=f"log-{self._part}", daemon=True
        )
        self._threads.append(thread)
        thread.start()

    def close(self, *, seconds: float) -> None:
        """Wait up to this long until the pipes are read to their end; then close the file."""
        for thread in self._threads:
            thread.join(seconds)
        if not any(thread.is_alive() for thread in self._threads):
            self._file.close()

    def _read(self, pipe: IO[bytes]) -> None:
        with pipe:
            for line in pipe:
                # Whatever the line is, the pipe must be emptied: a process blocks when its pipe is full.
                try:
                    text, event = self._parse(line)
                except (KeyError, TypeError, ValueError):  # JSON that is not a log record
                    text, event = line, None
                try:
                    self._file.write(text)
                except OSError as error:
                    self._report_write_error(error)
                if event is not None and self._events is not None:
                    self._events.put(event)

    def _parse(self, line: bytes) -> tuple[bytes, Event | None]:
        """Return the text for the file, and the event or None. Raises KeyError, TypeError, ValueError."""
        if not line.startswith(b"{"):  # written past the log, or by the broker
            found = (
                _event_of_broker(line.decode(errors="backslashreplace")) if self._part == "broker" else None
            )
            return line, None if self._as_json else found
        record = json.loads(line)
        if self._as_json:
            return line, Event(self._part, line.decode().rstrip())
        return _as_text(record), None if self._events is None else event_of(self._part, record)

    def _report_write_error(self, error: OSError) -> None:
        if self._events is not None and not self._write_error_reported:
            self._write_error_reported = True
            text = f"warning: its log cannot be written: {error.strerror}"
            self._events.put(Event(self._part, text, "warning"))


def event_of(part: str, record: dict[str, Any]) -> Event | None:
    """Return the event of a log record, or None.

    Events are warnings, errors, and what Labelmill itself logs. Of Celery's other lines, only `ready` is one.
    """
    level = str(record["level"])
    message = (str(record["message"]).strip() or "-").splitlines()[0]
    if level in ("warning", "error", "critical"):
        return Event(part, f"{'warning' if level == 'warning' else 'error'}: {message}", level)
    if level != "info":
        return None
    if str(record["logger"]).startswith("celery"):
        return Event(part, "ready") if _STARTED.fullmatch(message) else None
    if {"job", "images", "errors"} <= record.keys():  # a chunk is done
        seconds = (record.get("seconds") or {}).get("total", 0.0)
        done = f"{pluralize(record['images'], 'image')} done, {pluralize(record['errors'], 'error')}"
        return Event(part, f"job {record['job']}: {done}, {seconds:.1f} s")
    return Event(part, message)


def _event_of_broker(line: str) -> Event | None:
    found = _BROKER_LINE.match(line)
    if found is None:
        return None
    level, text = found[1], found[2].strip()
    if level == "#" and not text.startswith(_HARMLESS):
        return Event("broker", f"warning: {text}", "warning")
    return Event("broker", "ready") if text.startswith("Ready to accept connections") else None


def _as_text(record: dict[str, Any]) -> bytes:
    """Return the record as Celery writes it, and the traceback below it."""
    moment = datetime.fromisoformat(record["time"]).astimezone()
    time = f"{moment:%Y-%m-%d %H:%M:%S},{moment.microsecond // 1000:03}"
    text = f"[{time}: {record['level'].upper()}/{record['process']}] {record['message']}\n"
    if "exception" in record:
        text += f"{record['exception']}\n"
    return text.encode(errors="backslashreplace")
