"""`labelmill doctor`: one module an area, each a generator of findings that asks what it is named for.

No area waits for another one, or is kept from speaking by it. `examine` runs them all.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

from jobs.settings import Settings
from labelmill.doctor.broker import check_broker
from labelmill.doctor.configuration import check_settings
from labelmill.doctor.findings import Area, Finding, Level
from labelmill.doctor.home import check_home
from labelmill.doctor.ledger import check_ledger
from labelmill.doctor.models import check_models
from labelmill.doctor.store import check_store
from labelmill.doctor.training import check_training
from labelmill.doctor.work import check_work
from labelmill.looking import words_of

__all__ = ["Finding", "Level", "examine"]

Check = Callable[[Settings], Iterator[Finding]]

AREAS: Final[dict[str, Check]] = {
    "settings": check_settings,
    "home": check_home,
    "broker": check_broker,
    "ledger": check_ledger,
    "store": check_store,
    "models": check_models,
    "training": check_training,
    "jobs": check_work,
}

#: How long all of it may take. Every check has a shorter patience of its own where it can: a name server or a
#: disk on a network that does not answer cannot be told to hurry.
PATIENCE_SECONDS: Final = 20.0


def examine(settings: Settings, *, patience: float = PATIENCE_SECONDS) -> list[Finding]:
    """The findings of all areas, in their order. Raises nothing: what goes wrong is a finding."""
    running = [_Running(name, check, settings) for name, check in AREAS.items()]
    deadline = time.monotonic() + patience
    for area in running:
        area.thread.join(max(0.0, deadline - time.monotonic()))
    return [finding for area in running for finding in area.result(patience)]


class _Running:
    """One area's checks in a thread of their own, which may be left behind where it hangs."""

    def __init__(self, name: str, check: Check, settings: Settings) -> None:
        self._area = Area(name)
        self._check = check
        self._settings = settings
        self._findings: list[Finding] = []
        self.thread = threading.Thread(target=self._run, name=f"doctor-{name}", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            for finding in self._check(self._settings):
                self._findings.append(finding)
        except Exception as error:
            # A package's own, that nobody here knows: no area keeps the others from speaking.
            reason = f"{type(error).__name__}: {words_of(error, self._settings)}"
            self._findings.append(
                self._area.problem(f"the check itself broke off: {reason}", fix="what this error says")
            )

    def result(self, patience: float) -> list[Finding]:
        findings = list(self._findings)
        if self.thread.is_alive():
            findings.append(
                self._area.problem(
                    f"no answer within {patience:g} s",
                    fix=f"see whether the host or disk answers that the {self._area.name} is on",
                )
            )
        return findings
