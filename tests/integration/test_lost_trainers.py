"""How the commands show a run whose trainer died, if no worker reconciles."""

from __future__ import annotations

import json
from itertools import islice
from typing import Any

import pytest
from typer.testing import CliRunner

from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.learning import runs
from jobs.ledger.learning.runs import RUN_GRACE_SECONDS, claim_run, renew_run, request_run
from jobs.schema import RunState, db_now, training_runs
from jobs.settings import ENV_PREFIX, Settings
from labelmill.client import Client
from labelmill.commands.runs import app as runs_command


@pytest.fixture(autouse=True)
def environment(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the commands use the test's settings."""
    for name in ("home", "ledger_url", "broker_url"):
        monkeypatch.setenv(ENV_PREFIX + name.upper(), str(getattr(settings, name)))


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


def ask(*arguments: str) -> Any:
    return CliRunner().invoke(runs_command, arguments)


def test_it_is_told_from_one_that_is_trained(ledger: Ledger, dead: runs.RunClaim) -> None:
    # given a run without a heartbeat, then every command that shows it says so
    listed = ask().stdout.splitlines()[1]
    assert " running " in listed
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
    settings: Settings, dead: runs.RunClaim, monkeypatch: pytest.MonkeyPatch
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


def test_who_follows_it_does_not_end_it_at_their_first_look(
    settings: Settings, ledger: Ledger, dead: runs.RunClaim
) -> None:
    # given somebody who has looked twice within the grace period
    assert RUN_GRACE_SECONDS > 5
    with Client(settings) as client:
        looks = client.follow_run(dead.run_id)
        assert [next(looks).state for _ in range(2)] == [RunState.RUNNING] * 2

        # when the trainer sends a heartbeat, then its run goes on
        with ledger.transaction() as connection:
            renew_run(connection, dead)
        run = next(looks)
    assert (run.state, run.silent_since) == (RunState.RUNNING, None)
