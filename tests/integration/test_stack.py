"""The local stack stops whenever it is told to, and logs to files and events."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path
from queue import SimpleQueue

import pytest

from jobs.ledger import Ledger
from jobs.settings import Settings
from labelmill.client.migrating import open_ledger
from labelmill.local import logs
from labelmill.local.logs import Event, LogFile, PartLog
from labelmill.local.stack import Stack, StackIsUp, stack_is_up
from tests.programs import run_python

#: A stack that is told to stop during the fork of its first process.
SCRIPT = """
import os, signal, sys
from pathlib import Path
from jobs.ledger import Ledger
from jobs.settings import Settings
from labelmill.local.stack import Stack, StackIsUp, stack_is_up

home, number = Path(sys.argv[1]), int(sys.argv[2])
sent = []

def send_once():
    if not sent:
        sent.append(True)
        os.kill(os.getpid(), number)

os.register_at_fork(after_in_parent=send_once)
try:
    with Stack(Settings.load(home=home), worker=False):
        print("goes on")
except KeyboardInterrupt:
    print("stopped")
"""


#: An ordinary user's process that gives way. A process that changes its user loses its files in /proc, unless
#: it asks to keep them (PR_SET_DUMPABLE).
GIVES_WAY = """
import ctypes, os
from pathlib import Path
from labelmill.local.niceness import give_way

os.setsid()
if os.getuid() == 0:
    os.setuid(65534)
    ctypes.CDLL(None).prctl(4, 1)
give_way(10)
session = Path("/proc/self/autogroup")
print(session.read_text().split()[-1] if session.exists() else os.nice(0))
"""


@pytest.mark.parametrize("number", [2, 15])
def test_a_signal_in_the_middle_of_a_fork_is_not_lost(short_folder: Path, number: int) -> None:
    done = run_python(SCRIPT, str(short_folder / "home"), str(number))
    assert done.stdout == "stopped\n", done.stderr


def test_a_part_that_dies_is_started_again_and_its_log_is_complete(
    short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labelmill.local.stack.RESTART_SECONDS", 0.0)
    settings = Settings.load(home=short_folder / "home")
    with Stack(settings, worker=False, with_events=True) as stack:
        # given a stack whose broker was killed
        assert stack.next_event(30) == Event("broker", "ready")
        [service] = stack._services
        assert service.process is not None
        os.kill(service.process.pid, signal.SIGKILL)
        service.process.wait()

        # when ended parts are restarted, then that is an event, and the part runs again
        stack.restart_ended()
        died = Event("broker", "error: ended with -9; restarting it", "error")
        assert [stack.next_event(30), stack.next_event(30)] == [died, Event("broker", "ready")]

    # and its log has everything from the first start to the last line, and only its owner can read it
    log = settings.home / "logs" / "broker.log"
    assert log.read_text().count("Ready to accept connections") == 2
    assert log.read_text().rstrip().endswith("bye bye...")
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert stack.next_event(0) is None


def test_a_stack_that_is_starting_is_waited_for(short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a stack that is starting: its broker does not answer yet
    settings = Settings.load(home=short_folder / "home")
    found: list[bool] = []
    command = threading.Thread(target=lambda: found.append(stack_is_up(settings)))

    def look_meanwhile(settings: Settings) -> Ledger:
        # when a command looks whether there is a stack, then it waits for the answer
        command.start()
        command.join(1.0)
        assert found == []
        # and nobody can start a second one
        with pytest.raises(StackIsUp):
            Stack(settings, worker=False).__enter__()
        return open_ledger(settings)

    monkeypatch.setattr("labelmill.local.stack.open_ledger", look_meanwhile)
    with Stack(settings, worker=False):
        command.join(60)
        assert found == [True]
    assert not stack_is_up(settings)


@pytest.mark.parametrize("niceness", [0, 10])
def test_workers_and_trainers_give_way_to_the_other_processes(short_folder: Path, niceness: int) -> None:
    with Stack(Settings.load(home=short_folder / "home", niceness=niceness), trainer=True) as stack:
        processes = {service.name: service.process for service in stack._services}
        pids = {name: process.pid for name, process in processes.items() if process is not None}
        of_processes = {name: os.getpriority(os.PRIO_PROCESS, pid) for name, pid in pids.items()}
        autogroups = {name: Path(f"/proc/{pid}/autogroup") for name, pid in pids.items()}
        of_sessions = {
            name: path.read_text().split()[-1] for name, path in autogroups.items() if path.exists()
        }
    ours = os.nice(0)
    assert of_processes == {"broker": ours, "worker": ours + niceness, "trainer": ours + niceness}
    # Empty if the kernel does not share the cores by session.
    assert of_sessions in ({}, {"broker": "0", "worker": str(niceness), "trainer": str(niceness)})


def test_an_ordinary_users_processes_may_all_give_way_at_once() -> None:
    """Linux lets ordinary users change the priority of only one session in a tenth of a second."""
    started = [
        subprocess.Popen([sys.executable, "-c", GIVES_WAY], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert [process.communicate(timeout=60)[0] for process in started] == ["10\n"] * 3


def test_a_log_file_is_bounded_and_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MAX_LOG_BYTES", 100)
    path = tmp_path / "new" / "worker.log"
    for start in (0, 25):  # opened twice, as by two stacks one after the other
        file = LogFile(path)
        for number in range(start, start + 25):
            file.write(b"line %04d\n" % number)
        file.close()

    older = path.with_name("worker.log.1")
    assert (older.read_text() + path.read_text()).splitlines()[-15:] == [
        f"line {n:04}" for n in range(35, 50)
    ]
    for each in (path, older):
        assert each.stat().st_size <= 100
        assert stat.S_IMODE(each.stat().st_mode) == 0o600
    assert {each.name for each in path.parent.iterdir()} == {"worker.log", "worker.log.1"}


def test_lines_that_are_no_records_do_not_stop_the_reading(tmp_path: Path) -> None:
    # Given a part that prints JSON of its own, broken JSON, and bytes that are not UTF-8
    said = b'{"level": 3}\n{"time": "soon", "level": "x", "message": 2, "process": 3}\n{broken\n\xff\n'
    program = f"import sys; sys.stdout.buffer.write({said!r})"
    events: SimpleQueue[Event] = SimpleQueue()
    log = PartLog("worker", tmp_path, as_json=False, events=events)
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    log.follow(process)
    process.wait()
    log.close(seconds=30)
    assert (tmp_path / "worker.log").read_bytes() == said
    assert events.empty()
