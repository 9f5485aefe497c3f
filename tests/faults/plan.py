"""Which fault happens where, how often: a file that a test writes and its worker processes read.

A rule names a seam, and what happens at every so many'th passing of it. Passings are counted across all
processes, in a file of one byte a passing, which no SIGKILL can leave half written.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

#: Names the folder with a harness's plan, its counts and the log of what happened.
FOLDER_VARIABLE: Final = "FAULT_FOLDER"

#: A process with failpoints that gets this writes into its log where it is.
STACK_SIGNAL: Final = signal.SIGUSR2


@dataclass(frozen=True)
class Rule:
    """At every `every`th passing of the seam, at most `times` times."""

    seam: str
    action: str
    times: int
    every: int = 3
    #: What the action has to know; seconds, mostly.
    value: float = 0.0


class Plan:
    """The rules in force, and what they did so far."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / "plan.json"
        self._log = folder / "events.jsonl"
        self._number = 0

    # ---- the test's side ------------------------------------------------------------------------------

    def set(self, *rules: Rule) -> None:
        """These rules from now on, and no others; forgets what happened."""
        self.clear()
        self._number += 1
        written = self._folder / "plan.new"
        written.write_text(json.dumps([asdict(rule) | {"id": self._number} for rule in rules]))
        written.replace(self._file)

    def clear(self) -> None:
        """Nothing happens any more."""
        self._file.unlink(missing_ok=True)
        self._log.unlink(missing_ok=True)

    def events(self, action: str | None = None) -> list[dict[str, Any]]:
        """What happened since the rules were set, oldest first."""
        if not self._log.exists():
            return []
        events = [json.loads(line) for line in self._log.read_text().splitlines()]
        return [event for event in events if action in (None, event["action"])]

    # ---- the worker's side ----------------------------------------------------------------------------

    def due(self, seam: str) -> Iterable[Rule]:
        """A process passes the seam: the rules whose turn it is."""
        try:
            rules = json.loads(self._file.read_text())
        except FileNotFoundError:
            return
        for place, fields in enumerate(rules):
            number = fields.pop("id")
            rule = Rule(**fields)
            if rule.seam != seam:
                continue
            passings = self._passing(f"{number}-{place}")
            if passings % rule.every == 0 and passings // rule.every <= rule.times:
                self.log(rule.action, seam=seam)
                yield rule

    def log(self, action: str, **more: Any) -> None:
        """Notes that something happened."""
        event = {"action": action, "pid": os.getpid(), "parent": os.getppid(), "at": time.time()} | more
        with self._log.open("ab", buffering=0) as log:
            log.write(json.dumps(event).encode() + b"\n")

    def _passing(self, rule: str) -> int:
        """One more passing; the first is 1."""
        with (self._folder / f"passings-{rule}").open("ab", buffering=0) as count:
            fcntl.flock(count, fcntl.LOCK_EX)
            count.write(b".")
            return count.tell()
