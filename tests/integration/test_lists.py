"""The commands that list things fit into a terminal of 80 columns."""

from __future__ import annotations

import os
import pty
import subprocess

import pytest
import sqlalchemy as sa

from jobs.ids import new_id
from jobs.ledger.runs import request_run
from jobs.schema import RunState, db_now, jobs, training_runs
from tests.console import LABELMILL


@pytest.fixture
def terminal(settings):
    """Return a function: `terminal("jobs")` returns the lines printed in a terminal of 80 columns."""

    def terminal(*arguments):
        ours, theirs = pty.openpty()
        environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
        subprocess.run(["stty", "cols", "80", "rows", "24"], stdin=theirs, check=True)
        with subprocess.Popen(
            [LABELMILL, *arguments],
            env=environment | settings.environment() | {"TERM": "xterm"},
            stdin=theirs,
            stdout=theirs,
        ):
            os.close(theirs)
            said = b""
            with os.fdopen(ours, "rb", buffering=0) as screen:
                while True:
                    try:
                        more = screen.read(4096)
                    except OSError:  # Linux raises this at the end
                        break
                    if not more:
                        break
                    said += more
        return said.decode().replace("\r\n", "\n").splitlines()

    return terminal


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_a_row_of_jobs_is_a_line_of_80_columns(ledger, make_job, terminal):
    # Given two large running jobs with long keys, one of them paused
    ids = [make_job([3], key=f"june/{'very ' * 20}long {number}").id for number in range(2)]
    with ledger.transaction() as connection:
        connection.execute(jobs.update().values(total=100_000_000, succeeded=12_345_678, failed=1_234_567))
        connection.execute(jobs.update().where(jobs.c.id == ids[0]).values(paused_at=db_now()))

    # When they are listed, Then each takes one line, with its full id, state and counts
    lines = terminal("jobs")
    assert [len(line) <= 80 for line in lines] == [True] * 3
    second, first = lines[1:]
    assert first.startswith(f"{ids[0]}  running, paused ")
    assert second.startswith(f"{ids[1]}  running, wait...  100,000,000  13,580,245  1,234,567  june/")


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_a_row_of_runs_is_a_line_of_80_columns(ledger, terminal):
    # Given a run with a long verdict, a pending run, and a run of the schedule
    reason = "refused: accuracy is 0.7000, below the minimum of 0.9; recall of class 7 is 0.1"
    recipe = {"architecture": "cnn", "profile": "quick", "epochs": 30}
    done, waiting = new_id(), new_id()
    with ledger.transaction() as connection:
        request_run(connection, done, recipe=recipe)
        values = {"state": RunState.INTERRUPTED, "verdict": reason, "active": None, "slot": db_now()}
        connection.execute(training_runs.update().values(**values))
        request_run(connection, waiting, recipe=recipe)
        assert connection.scalar(sa.select(sa.func.count()).select_from(training_runs)) == 2

    # When they are listed, Then each takes one line, with its result
    lines = terminal("runs")
    assert [len(line) <= 80 for line in lines] == [True] * 3
    [line] = [line for line in lines if line.startswith(done)]
    assert "interrupted" in line
    assert "refused: accuracy" in line


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("command", ["workers", "models", "correct --list", "models history"])
@pytest.mark.usefixtures("champion")
def test_no_list_is_wider_than_the_terminal(terminal, command):
    lines = terminal(*command.split())
    assert lines
    assert max(map(len, lines)) <= 80
