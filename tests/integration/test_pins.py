"""A pinned champion stays until a person releases it or forces a promotion."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from jobs.errors import Conflict, NotFound
from jobs.ledger import Ledger
from jobs.ledger.learning.gate import Verdict, judge_and_promote
from jobs.ledger.learning.models import (
    champion_before,
    find_champion,
    find_verdict,
    get_model,
    pin_champion,
    roll_back,
    save_evaluation,
)
from jobs.models.evaluation import GateLimits
from jobs.models.model import Model
from jobs.storage.store import Store
from labelmill.commands.models import app as models_command
from tests.evaluations import made_evaluation
from tests.kerasfile import keras_file
from tests.registering import register_digits

TRUTH = [number % 10 for number in range(100)]

LIMITS = GateLimits(
    min_accuracy=0.5,
    min_class_recall=0.0,
    significance=0.01,
    margin=0.01,
    live_margin=0.05,
    max_calibration_error=1.0,
    max_image_microseconds=1000,
)

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(run_command) -> Run:
    """Return a function: `run("pin")` returns the command's exit code, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        done = run_command(models_command, *arguments)
        return done.exit_code, done.stdout, done.stderr

    return run


@pytest.fixture
def models(ledger: Ledger, store: Store) -> tuple[Model, Model, Model]:
    """Return the first champion, the present one, and a model that is much better than both."""
    made = [register_digits(ledger, store, keras_file(bytes([wrong]))) for wrong in (60, 40, 0)]
    for model, wrong in zip(made, (60, 40, 0), strict=True):
        given = [(label + 1) % 10 if index < wrong else label for index, label in enumerate(TRUTH)]
        with ledger.transaction() as connection:
            save_evaluation(connection, model.id, "d" * 64, *made_evaluation(TRUTH, given))
    for model in made[:2]:
        judged(ledger, model, force=True)
    return made[0], made[1], made[2]


def judged(ledger: Ledger, model: Model, **options: object) -> Verdict:
    with ledger.transaction() as connection:
        return judge_and_promote(connection, LIMITS, model.id, **{"how": "promote", **options})  # type: ignore[arg-type]


def pin(ledger: Ledger, *, pinned: bool = True) -> Model:
    with ledger.transaction() as connection:
        return pin_champion(connection, pinned=pinned)


def champion_of(ledger: Ledger) -> Model | None:
    with ledger.reading() as connection:
        return find_champion(connection)


@pytest.mark.parametrize(
    "options", [{"how": "retrain"}, {"how": "retrain", "force": True}, {"how": "promote"}], ids=str
)
def test_nothing_replaces_a_pinned_champion(
    ledger: Ledger, models: tuple[Model, Model, Model], options: dict[str, object]
) -> None:
    # Given a pinned champion, when a training run or a person has a better model
    _, champion, better = models
    pin(ledger)
    verdict = judged(ledger, better, **options)

    # Then it is not promoted, and the verdict says what to do
    said = f"the champion {champion.id} is pinned (labelmill models pin --off releases it)"
    assert (verdict.promote, verdict.forced, verdict.reason) == (False, False, f"not promoted: {said}")
    with ledger.reading() as connection:
        stored = find_verdict(connection, better.id)
    assert stored is not None
    assert [check["name"] for check in stored.checks if not check["passed"]] == ["pin"]

    # And once the champion is released, it is promoted
    assert pin(ledger, pinned=False).pinned_at is None
    assert judged(ledger, better, **options).promote


def test_a_person_who_forces_a_promotion_replaces_it_and_the_pin_does_not_pass_on(
    ledger: Ledger, models: tuple[Model, Model, Model]
) -> None:
    _, champion, better = models
    pin(ledger)
    verdict = judged(ledger, better, force=True)
    assert (verdict.promote, verdict.forced) == (True, True)
    assert verdict.reason.startswith(f"force-promoted, although the champion {champion.id} is pinned")
    with ledger.reading() as connection:
        assert [get_model(connection, each.id).pinned_at for each in models] == [None, None, None]


def test_a_pinned_champion_is_not_rolled_back(ledger: Ledger, models: tuple[Model, Model, Model]) -> None:
    first, champion, _ = models
    pin(ledger)
    with pytest.raises(Conflict, match=f"the champion {champion.id} is pinned"):
        roll_back_one(ledger)
    pin(ledger, pinned=False)
    roll_back_one(ledger)
    assert champion_of(ledger).id == first.id  # type: ignore[union-attr]


def roll_back_one(ledger: Ledger) -> None:
    with ledger.transaction() as connection:
        roll_back(connection, champion_before(connection))


def test_a_second_pin_keeps_the_time_of_the_first(ledger: Ledger, models: tuple[Model, Model, Model]) -> None:
    first = pin(ledger)
    assert first.id == models[1].id
    assert first.pinned_at is not None
    assert pin(ledger) == first


def test_without_a_champion_there_is_nothing_to_pin(ledger: Ledger) -> None:
    for pinned in (True, False):
        with pytest.raises(NotFound, match="Dataset mnist has no model yet"):
            pin(ledger, pinned=pinned)


def test_pinning_at_the_console(run: Run, models: tuple[Model, Model, Model]) -> None:
    # When the champion is pinned, Then the lists say so
    _, champion, better = models
    code, printed, said = run("pin")
    assert (code, printed) == (0, f"{champion.id}\n")
    assert "is pinned: no training run replaces it" in said
    assert "champion (pinned)" in run("list")[1]
    pins = {each["id"]: each["pinned_at"] for each in json.loads(run("list", "--json")[1])}
    assert [pins[each.id] is not None for each in models] == [False, True, False]
    assert json.loads(run("show", champion.id)[1])["pinned_at"] == pins[champion.id]

    # And it is not replaced
    code, printed, said = run("promote", better.id)
    assert (code, printed) == (3, "")
    assert "not promoted: the champion" in said
    assert "labelmill models pin --off" in run("rollback")[2]

    # When it is released, Then it can be replaced
    code, printed, _ = run("pin", "--off", "--json")
    assert (code, json.loads(printed)) == (0, {"model": champion.id, "pinned_at": None})
    assert "(pinned)" not in run("list")[1]
    assert run("rollback")[0] == 0
