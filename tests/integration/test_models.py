"""The model registry: immutable files named by their hash, and one champion."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from jobs.errors import ModelRefused
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.learning.models import (
    CHAMPION,
    add_model,
    find_champion,
    list_models,
    point_alias,
)
from jobs.models.model import InputSpec, Model
from jobs.schema import aliases, db_now, models
from jobs.storage.registry import fetch_model, model_key
from jobs.storage.store import Store
from tests.kerasfile import keras_file


@pytest.fixture
def shelf(tmp_path) -> Store:
    """Return the store with the model files."""
    return Store(str(tmp_path / "shelf"))


def champion_of(ledger: Ledger) -> Model | None:
    with ledger.reading() as connection:
        return find_champion(connection)


def point(ledger: Ledger, alias: str, model: Model) -> None:
    with ledger.transaction() as connection:
        point_alias(connection, alias, model.id)


def test_only_a_model_can_be_champion(ledger, make_model):
    # Given a champion
    model = make_model()

    # When the alias is set to an unknown model, Then the database refuses, and the champion stays
    with pytest.raises(sa.exc.IntegrityError), ledger.transaction() as connection:
        point_alias(connection, CHAMPION, "nothing")
    with pytest.raises(sa.exc.IntegrityError), ledger.transaction() as connection:
        connection.execute(aliases.update().values(model_id="nothing"))
    assert champion_of(ledger).id == model.id


def test_models_are_listed_newest_first_with_all_their_names(ledger, make_model):
    # Given three models registered one after the other, one with two aliases
    made = [make_model(f"{number}".encode(), champion=False) for number in range(3)]
    with ledger.transaction() as connection:
        for age, model in enumerate(reversed(made)):
            connection.execute(
                models.update().where(models.c.id == model.id).values(created_at=db_now(-60 * age))
            )
    point(ledger, "previous", made[0])
    point(ledger, CHAMPION, made[0])

    # Then the newest comes first, and each has its aliases
    with ledger.reading() as connection:
        listed = list_models(connection)
    assert [model.id for model in listed] == [model.id for model in reversed(made)]
    assert [model.aliases for model in listed] == [(), (), (CHAMPION, "previous")]


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
def test_the_same_file_registered_twice_at_once_is_one_model(ledger, wait_until_blocked):
    # Given a transaction that has registered a file and is not committed yet
    row = {
        "architecture": "dense",
        "sha256": "a" * 64,
        "size_bytes": 1,
        "classes": ("0",),
        "input_spec": InputSpec(28, 28),
        "accuracy": None,
        "metrics": {},
    }

    def register():
        with ledger.transaction() as connection:
            return add_model(connection, model_id=new_id(), **row)

    with ThreadPoolExecutor(1) as pool:
        with ledger.transaction() as connection:
            first = add_model(connection, model_id=new_id(), **row)

            # When another transaction registers the same file, and waits for that commit
            second = pool.submit(register)
            wait_until_blocked()

        # Then both get the same model
        assert second.result(30) == first


# ---- the file -----------------------------------------------------------------------------------------


def test_a_models_file_is_fetched_once_and_then_at_hand(make_model, shelf, tmp_path):
    # Given a registered model
    model = make_model(b"the bytes", store=shelf)

    # When its file is fetched, Then it is the registered file
    path = fetch_model(shelf, model, tmp_path / "cache")
    assert path.read_bytes() == keras_file(b"the bytes")
    assert path.suffix == ".keras"

    # And when the store has lost it, the cached copy is used
    shelf.remove_folder("models")
    assert fetch_model(shelf, model, tmp_path / "cache") == path


def test_a_tampered_copy_is_not_used(make_model, shelf, tmp_path):
    # Given a cached copy that was changed
    model = make_model(b"the bytes", store=shelf)
    path = fetch_model(shelf, model, tmp_path / "cache")
    path.write_bytes(b"evil code")

    # When the model is fetched, Then it is read from the store again
    assert fetch_model(shelf, model, tmp_path / "cache").read_bytes() == keras_file(b"the bytes")


def test_a_tampered_file_is_refused_before_anything_reads_it(make_model, shelf, tmp_path):
    # Given a file that was changed in the store
    model = make_model(b"the bytes", store=shelf)
    shelf.put(f"models/{model.sha256}.keras", b"evil code")

    # When the model is fetched, Then it is refused, and no copy is left
    with pytest.raises(ModelRefused, match="not the one that was registered"):
        fetch_model(shelf, model, tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_a_file_that_is_gone_is_refused(make_model, shelf, tmp_path):
    model = make_model(b"the bytes", store=shelf)
    shelf.remove(model_key(model.sha256))
    with pytest.raises(ModelRefused, match="gone"):
        fetch_model(shelf, model, tmp_path / "cache")
