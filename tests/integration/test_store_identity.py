"""A producer whose store is not the workers' store is refused before it writes anything."""

from __future__ import annotations

import contextlib
import json
import shutil

import pytest
import sqlalchemy as sa

from jobs.errors import Conflict, Unavailable
from jobs.ledger import Ledger
from jobs.schema import store_identity
from jobs.storage.store import Store
from jobs.storage.store_identity import adopt_store, check_store
from labelmill.cli import app
from labelmill.client import Client
from tests.threads import at_once


@pytest.fixture
def other_store(tmp_path):
    return Store(str(tmp_path / "elsewhere"))


@pytest.fixture(params=["folder", "memory"])
def any_store(request, tmp_path):
    return Store({"folder": str(tmp_path / "store"), "memory": f"memory://{tmp_path}/store"}[request.param])


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_the_first_store_that_is_used_is_the_ledgers(ledger, any_store, other_store):
    # Given a ledger without a model, and an unused store
    check_store(ledger, any_store)
    # Then the first store that is checked is the ledger's
    check_store(ledger, any_store)
    with pytest.raises(Conflict, match="but the ledger's files are in"):
        check_store(ledger, other_store)


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_a_ledger_from_before_knows_its_store_by_the_champion(ledger, make_model, any_store, other_store):
    # Given a ledger with a champion, and without a record of its store
    make_model(store=any_store)
    # When a process with another store comes first, Then that store is not recorded
    check_store(ledger, other_store)
    with ledger.reading() as connection:
        assert connection.execute(sa.select(store_identity)).all() == []
    # But the store with the champion's file is, and then the other one is refused
    check_store(ledger, any_store)
    with pytest.raises(Conflict):
        check_store(ledger, other_store)


def test_many_first_producers_of_one_store_are_all_served(ledger_url, tmp_path):
    def first(_number):
        with contextlib.closing(Ledger(ledger_url)) as ledger:
            check_store(ledger, Store(str(tmp_path / "store")))

    at_once(first, range(8))
    # Then there is one identity
    assert len(list((tmp_path / "store" / "identity").iterdir())) == 1


def test_of_two_first_producers_with_two_stores_one_is_refused(ledger_url, tmp_path):
    def first(number):
        with contextlib.closing(Ledger(ledger_url)) as ledger:
            try:
                check_store(ledger, Store(str(tmp_path / f"store {number}")))
            except Conflict:
                return False
            return True

    assert sorted(at_once(first, range(2))) == [False, True]


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_a_store_that_was_moved_is_known_again(ledger, tmp_path):
    # Given a store in use that is moved with all its files
    check_store(ledger, Store(str(tmp_path / "store")))
    shutil.move(tmp_path / "store", tmp_path / "moved")
    # Then it is still the ledger's store, and an empty one in its old place is not
    check_store(ledger, Store(str(tmp_path / "moved")))
    with pytest.raises(Conflict, match="mount its disk"):
        check_store(ledger, Store(str(tmp_path / "store")))


def test_a_store_that_was_replaced_is_adopted(ledger, store, other_store):
    check_store(ledger, store)
    # When another store is adopted, Then it is the ledger's, and the earlier one is refused
    adopt_store(ledger, other_store)
    check_store(ledger, other_store)
    with pytest.raises(Conflict):
        check_store(ledger, store)


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_a_store_that_cannot_be_reached_is_not_taken_for_another(ledger, tmp_path):
    # Given a store in use whose folder was replaced by a file
    check_store(ledger, Store(str(tmp_path / "store")))
    shutil.move(tmp_path / "store", tmp_path / "moved")
    (tmp_path / "store").write_text("a file in its place")
    with pytest.raises(Unavailable, match="The store cannot be read"):
        check_store(ledger, Store(str(tmp_path / "store")))


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_a_producer_that_is_refused_is_told_so_by_the_command(
    settings, make_model, store, tmp_path, run_command, monkeypatch
):
    # Given a ledger that is in use with its store
    make_model(store=store)
    (tmp_path / "a.png").write_bytes(b"an image")
    with Client(settings) as client:
        client.submit(tmp_path / "a.png")

    # When the command submits with another store, Then it exits with 2 and names both stores and the setting,
    # and nothing is stored, until that store is adopted
    monkeypatch.setenv("LABELMILL_STORE_URL", str(tmp_path / "other"))
    done = run_command(app, "submit", tmp_path / "a.png")
    assert (done.exit_code, done.stdout) == (2, "")
    unwrapped = "".join(done.stderr.split())
    for word in (str(tmp_path / "other"), str(store.folder), "SetLABELMILL_STORE_URL", "dbadopt-store"):
        assert word in unwrapped
    assert not (tmp_path / "other").exists()
    # And purge and correct are refused with another store
    job = json.loads(run_command(app, "jobs", "--json").stdout)[0]["id"]
    for command in (("purge", "--payloads", "0"), ("correct", job, "0", "7")):
        done = run_command(app, *command)
        assert (done.exit_code, "LABELMILL_STORE_URL" in done.stderr) == (2, True)
    adopted = run_command(app, "db", "adopt-store")
    assert (adopted.exit_code, f"in {tmp_path / 'other'} on " in adopted.stderr) == (0, True)
    assert run_command(app, "submit", tmp_path / "a.png").exit_code == 0
