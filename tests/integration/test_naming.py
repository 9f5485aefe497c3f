"""People can type the beginning of an id, in any case, or an alias, on both databases."""

from __future__ import annotations

import json

import pytest

from jobs.errors import Conflict, ErrorCode, NotFound
from jobs.ids import new_id
from jobs.ledger.jobs.queries import full_id, model_named
from jobs.ledger.jobs.submission import open_job
from jobs.ledger.learning.runs import request_run
from labelmill.cli import app
from tests.conftest import plans_of
from tests.outcomes import Outcome

ONE, TWO, OTHER = "06h0w9aaaaaaaaaa", "06h0w9ab00000000", "07zzzzzzzzzzzzzz"


@pytest.fixture
def jobs(ledger, champion):
    with ledger.transaction() as connection:
        for job_id in (ONE, TWO, OTHER):
            open_job(connection, job_id, model_id=champion.id)


@pytest.mark.parametrize("typed", [OTHER, OTHER[:6], "07ZZZZZ", f" {OTHER.upper()}\n"])
@pytest.mark.usefixtures("jobs")
def test_the_beginning_of_an_id_is_enough(ledger, typed):
    with ledger.reading() as connection:
        assert full_id(connection, "job", typed) == OTHER


@pytest.mark.usefixtures("jobs")
def test_what_more_than_one_id_begins_with_is_none_of_them(ledger):
    with ledger.reading() as connection:
        with pytest.raises(Conflict, match=f"beginning of several jobs: .* {ONE}, {TWO}"):
            full_id(connection, "job", "06h0w9")
        assert full_id(connection, "job", "06h0w9ab") == TWO


@pytest.mark.parametrize("typed", ["", "07il", "08zzzzzz", "07zzzzil", f"{OTHER}z", "07zzzz%", "\0"])
@pytest.mark.usefixtures("jobs")
def test_what_no_id_begins_with_stays_what_it_is(ledger, typed):
    with ledger.reading() as connection:
        assert full_id(connection, "job", typed) == typed


@pytest.mark.usefixtures("jobs")
def test_what_is_too_short_to_tell_says_how_much_is_enough(ledger):
    with ledger.reading() as connection:
        for what in ("job", "training run", "model"):
            with pytest.raises(NotFound, match=f"There is no {what} '07ZZZ': type at least 6 characters of"):
                full_id(connection, what, "07ZZZ")


@pytest.mark.fast
@pytest.mark.usefixtures("jobs")
def test_a_beginning_is_looked_up_by_the_index(ledger):
    [(_, plan)] = plans_of(ledger, lambda connection: full_id(connection, "job", "07zzzz"))
    assert "SCAN jobs\n" not in plan + "\n"
    assert "Seq Scan" not in plan


def test_without_a_champion_its_alias_is_not_taken_for_an_id(ledger, make_model):
    make_model(champion=False)
    with pytest.raises(NotFound, match="Dataset mnist has no champion"), ledger.reading() as connection:
        model_named(connection, "champion")


# ---- at the console -----------------------------------------------------------------------------------


@pytest.fixture
def run(run_command):
    """Return a function: `run("status", "06h0w9")` returns the command's exit code, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        done = run_command(app, *arguments)
        return done.exit_code, done.stdout, done.stderr

    return run


def test_every_command_of_a_job_takes_a_beginning_and_tells_the_id(make_job, worker, run):
    job = make_job([1])
    worker.work(job.chunks[0], [Outcome("0.png", None, None, ErrorCode.QUARANTINED)])
    beginning = job.id[:12].upper()
    assert job.id in run("status", beginning)[1]
    assert "quarantined" in run("predictions", beginning)[1]
    for command, arguments in (
        ("pause", ()),
        ("resume", ()),
        ("cancel", ()),
        ("correct", ("0", "7")),
    ):
        code, _, said = run(command, beginning, *arguments)
        assert (code, job.id in said) == (2, True), said


def test_every_command_of_a_model_takes_an_alias_and_tells_the_id(make_model, store, run):
    champion = make_model(store=store)
    assert json.loads(run("models", "show", "champion")[1])["id"] == champion.id
    assert champion.id in run("models", "health", "champion")[1]
    for command in ("promote", "shadow", "report"):
        code, _, said = run("models", command, "champion")
        assert champion.id in said, command
        assert code != 0


def test_every_command_of_a_training_run_takes_a_beginning_and_tells_the_id(ledger, run):
    run_id = new_id()
    with ledger.transaction() as connection:
        request_run(connection, run_id, recipe={})
    assert run_id in run("runs", "show", run_id[:12])[1]
    code, _, said = run("runs", run_id)
    assert (code, f"runs show {run_id}" in " ".join(said.replace("│", "").split())) == (2, True)
    assert f"training run {run_id} is cancelled" in run("runs", "cancel", run_id[:12])[2]


def test_a_job_is_told_with_its_key(make_job, run):
    # Given a job whose key has control characters, and a job without a key
    named, other = make_job([1], key="2026\x1b[1A"), make_job([1])

    # When they are shown, Then the key is printed escaped
    assert "2026\\x1b[1A" in run("status", named.id)[1]
    assert "key" not in run("status", other.id)[1]
    keys = {line.split()[0]: line.split()[-1] for line in run("jobs")[1].splitlines()}
    assert keys == {"job": "key", named.id: "2026\\x1b[1A", other.id: "-"}
