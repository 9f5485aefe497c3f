"""The settings: whether they agree with each other and with this machine."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from sqlalchemy.engine import make_url

from jobs.cores import usable_cores
from jobs.queue import make_app
from jobs.settings import ENV_PREFIX, SOFT_TIME_LIMIT_SHARE, Settings, unknown_variables
from labelmill.doctor.findings import Area, Finding

_area = Area("settings")

#: What a process that classifies takes for itself: TensorFlow's data, a model, a chunk.
_PROCESS_BYTES: Final = 300 * 1024**2

#: And what all of them share: the code of TensorFlow.
_SHARED_BYTES: Final = 400 * 1024**2

#: Where Linux says how much memory the container may have that this process is in.
_CONTAINER_MEMORY: Final = Path("/sys/fs/cgroup/memory.max")


def check_settings(settings: Settings) -> Iterator[Finding]:
    """Time limits, the time for an image, names that are no settings, where things lie, processes, memory."""
    yield _time_limits(settings)
    yield _image_seconds(settings)
    yield _names()
    yield _reach(settings)
    if find_spec("tensorflow") is not None:  # elsewhere nobody classifies
        yield _processes(settings)
        yield _memory(settings)


def _time_limits(settings: Settings) -> Finding:
    # As Celery has them, not as they are meant to be.
    conf = make_app(settings).conf
    soft, hard = conf.task_soft_time_limit, conf.task_time_limit
    redelivery = conf.broker_transport_options["visibility_timeout"]
    lease = settings.lease_seconds
    what = f"time limits {soft:g} and {hard:g} s, lease {lease:g} s, redelivery {redelivery:g} s"
    if soft < hard < lease < redelivery:
        return _area.ok(what)
    return _area.problem(
        f"{what}: each must be longer than the one before, or two workers are at one chunk",
        fix="install Labelmill afresh: the shares of the lease in jobs/settings.py were changed",
    )


def _image_seconds(settings: Settings) -> Finding:
    limit, soft = settings.image_seconds, settings.soft_time_limit
    if limit < soft:
        return _area.ok(f"an image may take {limit:g} s, its chunk {soft:g} s")
    longer = math.ceil(2 * limit / SOFT_TIME_LIMIT_SHARE)
    return _area.warning(
        f"an image may take {limit:g} s, and its chunk only {soft:g} s: "
        "one that hangs takes its neighbours' time until it is alone",
        fix=f"{ENV_PREFIX}IMAGE_SECONDS={soft / 4:g}, or everywhere {ENV_PREFIX}LEASE_SECONDS={longer}",
    )


def _names() -> Finding:
    unknown = unknown_variables()
    if not unknown:
        return _area.ok(f"every {ENV_PREFIX}* in the environment is a setting")
    fixes = [f"unset {name}" + (f"; is {meant} meant?" if meant else "") for name, meant in unknown.items()]
    return _area.warning(
        f"{', '.join(unknown)}: no setting is called that, so it has no effect", fix=", ".join(fixes)
    )


def _reach(settings: Settings) -> Finding:
    """Where one part is on another machine, every part has to be where all machines reach it."""
    elsewhere = {
        "LEDGER_URL": is_elsewhere(make_url(settings.ledger).host),
        "BROKER_URL": is_elsewhere(urlsplit(settings.broker).hostname),
        # A folder may be one that many machines have: nobody can tell from here.
        "STORE_URL": settings.store_url is not None,
    }
    if not (elsewhere["LEDGER_URL"] or elsewhere["BROKER_URL"]):
        return _area.ok("ledger and broker are on this machine")
    missing = [ENV_PREFIX + name for name, reached in elsewhere.items() if not reached]
    if not missing:
        return _area.ok("ledger, broker and store are where other machines reach them")
    return _area.warning(
        f"{' and '.join(missing)} is this machine's alone, and other parts are not: "
        "a worker on another machine cannot do its part",
        fix=" ".join(f"{name}=..." for name in missing) + " for every process, reached from every machine",
    )


def is_elsewhere(host: str | None) -> bool:
    """Whether a URL's host is another machine; without a host it is a file or a Unix socket."""
    return bool(host) and host not in ("localhost", "::1") and not str(host).startswith(("127.", "/"))


def _processes(settings: Settings) -> Finding:
    cores = usable_cores()
    if settings.processes <= cores:
        return _area.ok(f"{settings.processes} processes on {cores} cores")
    return _area.warning(
        f"{settings.processes} processes on {cores} cores: they only take each other's time and memory",
        fix=f"{ENV_PREFIX}PROCESSES={cores}",
    )


def _memory(settings: Settings) -> Finding:
    there_is = _memory_bytes()
    wanted = _SHARED_BYTES + settings.processes * _PROCESS_BYTES
    what = f"{settings.processes} processes take some {wanted / 1024**3:.1f} GiB of {there_is / 1024**3:.1f}"
    if wanted <= there_is:
        return _area.ok(what)
    return _area.problem(
        f"{what}: the system will kill some of them",
        fix=f"{ENV_PREFIX}PROCESSES={max(1, (there_is - _SHARED_BYTES) // _PROCESS_BYTES)}",
    )


def _memory_bytes() -> int:
    """Of the machine, or of the container we are in."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(machine, int(_CONTAINER_MEMORY.read_text()))
    except (OSError, ValueError):  # not on Linux, or "max"
        return machine
