"""Class names can be corrected, and a model removed, while nothing depends on it."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from jobs.errors import Conflict, NotFound
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.jobs.submission import open_job
from jobs.ledger.learning.model_changes import remove_row, rename_classes
from jobs.ledger.learning.models import (
    add_model,
    add_verdict,
    find_evaluation,
    get_model,
    list_models,
    move_champion,
    point_alias,
    save_evaluation,
)
from jobs.ledger.learning.runs import latest_runs
from jobs.ledger.learning.schedules import set_schedule
from jobs.models.model import MNIST_INPUT, Model
from jobs.schema import corrections, db_now, metadata, training_runs
from jobs.storage.registry import model_key, read_stored, remove_model
from jobs.storage.store import Store
from labelmill.commands.models import app as models_command
from tests.evaluations import made_evaluation
from tests.kerasfile import keras_file
from tests.registering import register_digits

TRUTH = [number % 10 for number in range(20)]
LETTERS = tuple("abcdefghij")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(run_command) -> Run:
    """Return a function: `run("remove", id)` returns the command's exit code, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        done = run_command(models_command, *arguments)
        return done.exit_code, done.stdout, done.stderr

    return run


@pytest.fixture
def model(ledger: Ledger, store: Store) -> Model:
    """Return a registered model that was evaluated and that nothing else refers to."""
    made = register_digits(ledger, store, keras_file())
    with ledger.transaction() as connection:
        save_evaluation(connection, made.id, "d" * 64, *made_evaluation(TRUTH, TRUTH))
        return get_model(connection, made.id)


def use_in_job(connection: sa.Connection, model: Model) -> None:
    open_job(connection, new_id(), model_id=model.id)


def use_as_challenger(connection: sa.Connection, model: Model) -> None:
    point_alias(connection, "shadow", model.id)


def use_in_history(connection: sa.Connection, model: Model) -> None:
    move_champion(connection, model.id, previous_id=None, how="promote")
    connection.execute(metadata.tables["aliases"].delete())


def use_in_correction(connection: sa.Connection, model: Model) -> None:
    row = {"job_id": new_id(), "index": 0, "name": "a", "label": "1", "image_sha256": "0" * 64}
    connection.execute(corrections.insert().values(**row, model_id=model.id, created_at=db_now()))


def use_in_run(connection: sa.Connection, model: Model) -> None:
    row = {"id": new_id(), "dataset": "mnist", "state": "done", "recipe": {}, "data_source": ""}
    run = training_runs.insert().values(**row, data_fingerprint="", requested_at=db_now(), model_id=model.id)
    connection.execute(run)


def judge(connection: sa.Connection, model: Model) -> None:
    """Record that the gate refused it."""
    add_verdict(
        connection, run_id=None, model_id=model.id, champion_id=None, promote=False, forced=False, checks=[]
    )


# ---- corrected names ----------------------------------------------------------------------------------


def test_class_names_are_corrected_and_the_evaluation_under_the_old_ones_goes(
    run: Run, model: Model, ledger: Ledger, tmp_path
) -> None:
    # Given a model that was evaluated and refused by the gate, when its names are corrected
    with ledger.transaction() as connection:
        judge(connection, model)
    code, printed, said = run("edit", model.id, "--classes", "a, b,c,d,e,f,g,h,i,j")
    assert (code, printed) == (0, f"{model.id}\n")
    assert f"labelmill models evaluate {model.id}" in said

    # Then it has the new names, and no evaluation
    with ledger.reading() as connection:
        found = get_model(connection, model.id)
        assert find_evaluation(connection, model.id) is None
    assert (found.classes, found.accuracy) == (LETTERS, None)

    # And names can also come from a file
    names = tmp_path / "names.txt"
    names.write_text("\n".join("klmnopqrst"))
    code, printed, _ = run("edit", model.id, "--classes-file", str(names), "--json")
    assert (code, json.loads(printed)["classes"]) == (0, list("klmnopqrst"))


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "Name the classes: --classes A,B,C"),
        (["--classes", "a,b"], "has 10 classes (0, 1, 2, 3, 4, 5, 6, 7, 8, 9), and 2 are named"),
        (["--classes", "a,b,c,d,e,f,g,h,i,i"], "lists a class twice: i"),
    ],
)
def test_names_that_cannot_be_used_change_nothing(
    run: Run, model: Model, ledger: Ledger, arguments: list[str], why: str
) -> None:
    code, printed, said = run("edit", model.id, *arguments)
    assert (code, printed, why in said) == (2, "", True)
    with ledger.reading() as connection:
        assert get_model(connection, model.id) == model


# ---- removed models -----------------------------------------------------------------------------------


def test_a_model_that_nothing_refers_to_goes_with_its_file(
    run: Run, model: Model, ledger: Ledger, store: Store
) -> None:
    # When it is removed, Then its row, its evaluation and its file are gone
    code, printed, _ = run("remove", model.id)
    assert (code, printed) == (0, f"{model.id}\n")
    with ledger.reading() as connection:
        assert list_models(connection) == []
        assert find_evaluation(connection, model.id) is None
    assert not store.exists(model_key(model.sha256))
    assert run("remove", model.id)[0] == 2
    # And the same file can be registered again, with other classes
    again = register_digits(ledger, store, keras_file(), classes=LETTERS)
    assert (again.id != model.id, again.classes) == (True, LETTERS)


@pytest.mark.parametrize(
    ("use", "what"),
    [
        (use_in_job, "jobs (1)"),
        (use_as_challenger, "aliases (1)"),
        (use_in_history, "promotions (1)"),
        (use_in_correction, "corrections (1)"),
        (use_in_run, "training runs (1)"),
    ],
)
def test_a_model_that_something_refers_to_stays_with_its_names_and_its_file(
    run: Run, model: Model, ledger: Ledger, store: Store, use: Callable[..., None], what: str
) -> None:
    with ledger.transaction() as connection:
        use(connection, model)
        if use is not use_in_run:  # even if the gate refused it
            judge(connection, model)
    for command in (("remove", model.id), ("edit", model.id, "--classes", ",".join(LETTERS))):
        code, printed, said = run(*command)
        assert (code, printed, f"it is used by {what}:" in said) == (2, "", True)
    with ledger.reading() as connection:
        assert get_model(connection, model.id).classes == model.classes
        assert find_evaluation(connection, model.id) is not None
    assert read_stored(store, model)


def test_a_refused_model_can_be_removed_and_its_run_stays(
    run: Run, model: Model, ledger: Ledger, store: Store
) -> None:
    # Given a model of a training run that the gate refused, one that became champion, and one in use
    champion, used = (register_digits(ledger, store, keras_file(marker)) for marker in (b"a", b"b"))
    with ledger.transaction() as connection:
        use_in_run(connection, model)
        move_champion(connection, champion.id, previous_id=None, how="promote")
        use_in_job(connection, used)
        for each in (model, champion, used):
            judge(connection, each)

    # When refused models are removed, Then young ones stay, and otherwise only the one that nobody uses goes
    assert run("remove", "--refused", "--older-than", "1")[1].strip() == ""
    code, printed, said = run("remove", "--refused")
    assert (code, printed.split(), "1 refused model removed" in said) == (0, [model.id], True)
    with ledger.reading() as connection:
        assert {each.id for each in list_models(connection)} == {champion.id, used.id}
        [kept] = latest_runs(connection, limit=9)
    assert (kept.state, kept.model_id) == ("done", None)
    assert not store.exists(model_key(model.sha256))


def test_a_model_that_a_schedule_starts_from_stays(run: Run, model: Model, ledger: Ledger) -> None:
    request = {"architecture": "finetune", "start": model.id}
    with ledger.transaction() as connection:
        set_schedule(connection, "mnist", cron="0 3 * * 0", after_corrections=None, request=request)
    code, printed, said = run("remove", model.id)
    assert (code, printed, "the schedule of mnist starts from it" in said) == (2, "", True)
    with ledger.reading() as connection:
        assert get_model(connection, model.id) == model


def test_a_model_whose_file_is_gone_can_be_removed(model: Model, ledger: Ledger, store: Store) -> None:
    store.remove(model_key(model.sha256))
    remove_model(ledger, store, model)
    with ledger.reading() as connection:
        assert list_models(connection) == []


class Between(Store):
    """A store in which something happens right before or after a model's file is removed."""

    def __init__(self, url: str, *, before: Callable[[], None], after: Callable[[], None]) -> None:
        super().__init__(url)
        self.before, self.after = before, after

    def remove(self, key: str) -> None:
        self.before()
        super().remove(key)
        self.after()


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_file_that_is_registered_again_while_it_is_removed_is_kept(
    model: Model, ledger: Ledger, store: Store, moment: str
) -> None:
    # Given a process that registers the same file between the removal of its row and the end of the removal
    def register() -> None:
        register_digits(ledger, store, keras_file())

    def nothing() -> None:
        pass

    both = {"before": nothing, "after": nothing} | {moment: register}
    remove_model(ledger, Between(str(store.folder), **both), model)
    # Then the new model has its file
    with ledger.reading() as connection:
        [again] = list_models(connection)
    assert (again.id != model.id, read_stored(store, again)) == (True, keras_file())


class Losing(Store):
    """A store that loses a file right after it was put there for the first time."""

    lost = False

    def put(self, key: str, *pieces: bytes) -> None:
        super().put(key, *pieces)
        if not self.lost:
            self.lost = True
            self.remove(key)


def test_a_file_that_is_removed_while_it_is_registered_is_put_back(ledger: Ledger, store: Store) -> None:
    made = register_digits(ledger, Losing(str(store.folder)), keras_file())
    assert read_stored(store, made) == keras_file()


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("change", ["remove", "edit"])
def test_a_job_that_is_submitted_meanwhile_prevents_the_change(
    model: Model, ledger: Ledger, wait_until_blocked: Callable[[], None], change: str
) -> None:
    # Given a job whose submission is not committed yet
    def change_it() -> None:
        with ledger.transaction() as connection:
            if change == "remove":
                remove_row(connection, model.id)
            else:
                rename_classes(connection, model.id, LETTERS)

    with ThreadPoolExecutor(1) as pool:
        with ledger.transaction() as connection:
            use_in_job(connection, model)
            # When another process wants to change the model, Then it waits, and is refused
            changed = pool.submit(change_it)
            wait_until_blocked()
        with pytest.raises(Conflict, match=r"used by jobs \(1\)"):
            changed.result(30)


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
def test_a_job_for_a_model_that_is_removed_meanwhile_is_refused(
    model: Model, ledger: Ledger, wait_until_blocked: Callable[[], None]
) -> None:
    def submit() -> None:
        with ledger.transaction() as connection:
            use_in_job(connection, model)

    with ThreadPoolExecutor(1) as pool:
        with ledger.transaction() as connection:
            remove_row(connection, model.id)
            submitted = pool.submit(submit)
            wait_until_blocked()
        with pytest.raises(NotFound, match="has just been removed"):
            submitted.result(30)


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
def test_a_file_that_is_registered_again_is_not_removed_before_that_is_committed(
    model: Model, ledger: Ledger, wait_until_blocked: Callable[[], None]
) -> None:
    # Given a transaction that registers the same file again and that is not committed yet
    def remove() -> None:
        with ledger.transaction() as connection:
            remove_row(connection, model.id)

    row = {"sha256": model.sha256, "size_bytes": 1, "classes": LETTERS, "input_spec": MNIST_INPUT}
    with ThreadPoolExecutor(1) as pool:
        with ledger.transaction() as connection:
            again = add_model(
                connection, model_id=new_id(), architecture="", accuracy=None, metrics={}, **row
            )
            removed = pool.submit(remove)
            wait_until_blocked()
            # When another process removes the model, Then the transaction still finds it
            assert again == model.id
            assert get_model(connection, again).classes == model.classes
        removed.result(30)
