"""How the commands show a run whose trainer died, if no worker reconciles."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import islice

import pytest
from typer.testing import Result

from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.learning import runs
from jobs.ledger.learning.runs import claim_run, renew_run, request_run
from jobs.schema import RunState, db_now, training_runs
from jobs.settings import Settings
from labelmill.client import Client
from labelmill.commands.runs import app as runs_command


@pytest.fixture
def ask(run_command: Callable[..., Result]) -> Callable[..., Result]:
    """Return a function: `ask("show", id)` runs `labelmill runs`."""
    return lambda *arguments: run_command(runs_command, *arguments)


@pytest.fixture
def dead(ledger: Ledger) -> runs.RunClaim:
    """Return a run whose trainer was killed a day ago."""
    run_id = new_id()
    with ledger.transaction() as connection:
        request_run(connection, run_id, recipe={"architecture": "mlp", "profile": "quick", "epochs": 2})
        claim = claim_run(connection, run_id, owner="host/1")
        connection.execute(training_runs.update().values(lease_until=db_now(-86_400)))
    assert claim is not None
    return claim


def test_it_is_told_from_one_that_is_trained(
    ledger: Ledger, dead: runs.RunClaim, ask: Callable[..., Result]
) -> None:
    # given a run without a heartbeat, then every command that shows it says so
    listed = " ".join(ask().stdout.split())  # the last column is wrapped
    assert f"{dead.run_id} mnist running" in listed
    assert "no heartbeat since 20" in listed
    assert "running, but no heartbeat since 20" in ask("show", dead.run_id).stdout
    [told] = json.loads(ask("--json").stdout)
    assert told["silent_since"] is not None

    # but not if its trainer sends heartbeats
    with ledger.transaction() as connection:
        renew_run(connection, dead)
    assert "no heartbeat" not in ask().stdout + ask("show", dead.run_id).stdout
    [told] = json.loads(ask("--json").stdout)
    assert told["silent_since"] is None


def test_who_follows_it_sees_its_end(
    settings: Settings, dead: runs.RunClaim, ask: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    # given somebody who follows the run for the grace period, then the run is interrupted
    monkeypatch.setattr(runs, "RUN_GRACE_SECONDS", 0.1)
    with Client(settings) as client:
        *before, last = islice(client.follow_run(dead.run_id), 9)
    assert {run.state for run in before} == {RunState.RUNNING}
    assert (last.state, last.error) == (RunState.INTERRUPTED, "its trainer stopped sending heartbeats")

    # and the command ends
    done = ask("show", dead.run_id, "--watch")
    assert done.exit_code == 1
    assert f"training run {dead.run_id} is interrupted: its trainer stopped sending heartbeats" in done.stdout
