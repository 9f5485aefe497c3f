"""Test promotion from end to end: verdicts, the champion alias, its history, rollbacks, and the pin."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace

import pytest
import sqlalchemy as sa

from jobs import ids
from jobs.errors import Conflict, ModelRefused, NotFound
from jobs.ledger import Ledger
from jobs.ledger.learning.gate import Verdict, judge_and_promote, set_limits
from jobs.ledger.learning.models import (
    CHAMPION,
    champion_before,
    champion_history,
    find_evaluation,
    find_verdict,
    get_model,
    pin_champion,
    roll_back,
    save_evaluation,
)
from jobs.models.dataset import MNIST
from jobs.models.evaluation import Part
from jobs.models.model import Model
from jobs.models.promotion import GateLimits
from jobs.schema import RunState, aliases, db_now, evaluations, models, training_runs
from jobs.storage.registry import read_stored
from jobs.storage.store import Store
from labelmill.commands.models import app as models_command
from labelmill.datasets.mnist import GATE
from tests.evaluations import made_evaluation
from tests.kerasfile import keras_file
from tests.ledger_probes import champion_of
from tests.registering import register_digits
from tests.threads import at_once

LIMITS = GateLimits(
    min_accuracy=0.9,
    min_class_recall=0.5,
    significance=0.01,
    margin=0.01,
    live_margin=0.05,
    max_calibration_error=0.03,
    max_image_microseconds=1000,
)

DATA, OTHER_DATA = "d" * 64, "e" * 64

#: The labels of a hundred images, ten of each class.
TRUTH = [number % 10 for number in range(100)]

Maker = Callable[..., Model]


def evaluated(ledger: Ledger, model: Model, wrong: int, data: str = DATA, *, part: Part = Part.TEST) -> None:
    """Record that the model got all but the first `wrong` images right."""
    given = [(label + 1) % 10 if index < wrong else label for index, label in enumerate(TRUTH)]
    with ledger.transaction() as connection:
        save_evaluation(connection, model.id, data, *made_evaluation(TRUTH, given), part=part)


@pytest.fixture
def trained(ledger: Ledger, make_model: Maker) -> Maker:
    """Return a function: `trained("a", wrong=3)` registers a model with three mistakes, not as champion."""

    def trained(marker: str, wrong: int = 0) -> Model:
        model = make_model(marker.encode(), champion=False)
        evaluated(ledger, model, wrong)
        return model

    return trained


def judged(ledger: Ledger, model: Model, **options: object) -> Verdict:
    with ledger.transaction() as connection:
        return judge_and_promote(connection, LIMITS, model.id, **{"how": "promote", **options})  # type: ignore[arg-type]


def moves_of(ledger: Ledger) -> list[tuple[str | None, str, str]]:
    """Return the history, oldest first: from, to, how."""
    with ledger.reading() as connection:
        history = champion_history(connection)
    return [(move.previous_id, move.model_id, move.how) for move in reversed(history)]


# ---- evaluations --------------------------------------------------------------------------------------


def test_the_same_model_on_the_same_images_again_takes_the_place_of_the_one_before(ledger, make_model):
    model = make_model()
    evaluated(ledger, model, 4)
    evaluated(ledger, model, 7)
    with ledger.reading() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(evaluations)) == 1
        assert find_evaluation(connection, model.id, DATA).evaluation.correct == 93

    # And without a set of images, the latest counts
    evaluated(ledger, model, 2, OTHER_DATA)
    with ledger.reading() as connection:
        assert find_evaluation(connection, model.id).data_fingerprint == OTHER_DATA


def test_answers_to_other_than_all_images_are_a_mistake(ledger, make_model):
    model = make_model()
    evaluation, answers = made_evaluation(TRUTH, TRUTH)
    for wrong in (answers[:-1], answers[::2], answers + b"\0\0"):
        with (
            pytest.raises(ValueError, match="not the answers to 100 images"),
            ledger.transaction() as connection,
        ):
            save_evaluation(connection, model.id, DATA, evaluation, wrong)


# ---- the gate -----------------------------------------------------------------------------------------


def test_a_first_model_that_is_no_better_than_guessing_is_refused_unless_forced(ledger, make_model):
    # Given no champion, and a model that answers only the largest class, of 40 % of the images
    truth = [0] * 40 + [1] * 30 + [2] * 30
    model = make_model(b"guesses", champion=False)
    with ledger.transaction() as connection:
        save_evaluation(connection, model.id, DATA, *made_evaluation(truth, [0] * 100))

    # When it is judged, Then it is refused with that reason, and a person can still promote it
    verdict = judged(ledger, model, how="retrain")
    assert not verdict.promote
    assert verdict.reason == (
        "refused: accuracy is 0.4000, not above the 0.4000 of always answering 0, the largest class; train "
        "with more images, or promote it with --force"
    )
    assert champion_of(ledger) is None
    assert judged(ledger, model, force=True).promote


def test_the_first_model_is_promoted_although_it_misses_limits_and_its_reasons_say_so(ledger, trained):
    # Given no champion, and a model below the floor
    model = trained("poor", wrong=20)

    # When it is judged
    verdict = judged(ledger, model, how="retrain", replace=False)

    # Then it is the champion, and the verdict names what it lacks
    assert (verdict.promote, verdict.forced) == (True, False)
    assert verdict.reason == (
        "promoted: there was no champion (although accuracy is 0.8000, below the minimum of 0.9)"
    )
    assert champion_of(ledger) == model.id
    assert moves_of(ledger) == [(None, model.id, "retrain")]


def test_a_better_model_is_promoted_and_its_verdict_is_a_row(ledger, trained):
    # Given a champion with ten mistakes, a challenger without any, and its training run
    old, new = trained("old", wrong=10), trained("new")
    judged(ledger, old)
    run_id = ids.new_id()
    run = {"dataset": "mnist", "state": RunState.RUNNING, "recipe": {}, "data_source": ""}
    with ledger.transaction() as connection:
        connection.execute(
            training_runs.insert().values(id=run_id, data_fingerprint="", requested_at=db_now(), **run)
        )

    # When it is judged
    verdict = judged(ledger, new, how="retrain", run_id=run_id, data_fingerprint=DATA)

    # Then it is promoted, with these checks in this order
    assert verdict.promote
    assert verdict.reason.startswith(
        "promoted: better on the test set: it gets 10 right that the champion gets wrong and 0 the other"
    )
    names = [check.name for check in verdict.checks]
    assert names == ["comparable", "accuracy", "class recall", "test set", "calibration", "speed"]
    assert all(check.passed for check in verdict.checks)
    assert champion_of(ledger) == new.id

    # And both the verdict and the promotion are stored
    with ledger.reading() as connection:
        stored = find_verdict(connection, new.id)
        [move] = champion_history(connection, limit=1)
        assert find_verdict(connection, "nothing") is None
    assert (stored.run_id, stored.champion_id, stored.promote, stored.forced) == (run_id, old.id, True, False)
    assert [(check["name"], check["passed"], check["text"]) for check in stored.checks] == [
        (check.name, check.passed, check.text) for check in verdict.checks
    ]
    assert (move.model_id, move.previous_id, move.how) == (new.id, old.id, "retrain")
    assert (move.verdict_id, move.forced) == (stored.id, False)


def test_the_live_set_decides_if_the_test_set_has_nothing_left_to_gain(ledger, trained):
    # Given two models that are equally good on the test set, but not on held-out corrections
    old, new = trained("old"), trained("new")
    judged(ledger, old)
    evaluated(ledger, old, wrong=60, data=OTHER_DATA, part=Part.LIVE)
    evaluated(ledger, new, wrong=10, data=OTHER_DATA, part=Part.LIVE)

    # When the better one is judged, then it is promoted, and the verdict says what decided
    with ledger.transaction() as connection:
        verdict = judge_and_promote(connection, replace(LIMITS, margin=0.03), new.id, how="retrain")
    assert verdict.reason == (
        "promoted: not worse on the test set: at most 2.63 points, with 95 % confidence; better on the live "
        "set: it gets 50 right that the champion gets wrong and 0 the other way round, p = 1.8e-15"
    )
    assert champion_of(ledger) == new.id

    # And its accuracy is that on the test set
    with ledger.reading() as connection:
        assert get_model(connection, new.id).accuracy == 1.0


def test_a_live_set_that_the_champion_was_not_evaluated_on_decides_nothing(ledger, trained):
    # Given a challenger that is better on the live set, on which the champion was not evaluated
    old, new = trained("old"), trained("new")
    judged(ledger, old)
    evaluated(ledger, old, wrong=60, data="f" * 64, part=Part.LIVE)
    evaluated(ledger, new, wrong=10, data=OTHER_DATA, part=Part.LIVE)

    # When it is judged, then by the test set alone
    verdict = judged(ledger, new, how="retrain")
    assert not verdict.promote
    assert "live set" not in {check.name for check in verdict.checks}


def test_without_replace_a_champion_stays_whatever_comes(ledger, trained):
    old, new = trained("old", wrong=30), trained("new")
    judged(ledger, old)
    verdict = judged(ledger, new, how="retrain", replace=False)
    assert (verdict.promote, verdict.reason) == (False, f"not promoted: {old.id} stays the champion")
    assert champion_of(ledger) == old.id


def test_what_was_not_evaluated_is_not_judged_unless_forced(ledger, make_model):
    make_model(b"old")
    new = make_model(b"new", champion=False)
    with pytest.raises(Conflict, match=f"run `labelmill models evaluate {new.id}`") as told:
        judged(ledger, new)
    assert f"`labelmill models promote {new.id} --force`" in str(told.value)
    with ledger.reading() as connection:
        assert find_verdict(connection, new.id) is None
    assert judged(ledger, new, force=True).reason == "force-promoted, although it was not evaluated"
    assert champion_of(ledger) == new.id


def test_a_champion_that_was_evaluated_on_other_images_cannot_be_compared(ledger, make_model, trained):
    # Given a champion that was evaluated on other images
    old, new = make_model(b"old"), trained("new")
    evaluated(ledger, old, 50, OTHER_DATA)

    # When a challenger is judged, Then it is refused, and the reason names the command that helps
    verdict = judged(ledger, new)
    assert not verdict.promote
    assert verdict.checks[0].name == "comparable"
    assert f"`labelmill models evaluate {new.id}` evaluates both" in verdict.reason

    # And once both are evaluated on the same images, it is judged
    evaluated(ledger, old, 50)
    assert judged(ledger, new).promote


def test_models_of_other_classes_cannot_be_compared(ledger, trained):
    # Given a champion with other classes that was evaluated on the same images
    old, new = trained("old", wrong=80), trained("new")
    judged(ledger, old)
    with ledger.transaction() as connection:
        connection.execute(models.update().where(models.c.id == old.id).values(classes=list("abcdefghij")))

    # Then its answers say nothing about it, so the other one cannot be better
    verdict = judged(ledger, new, how="retrain")
    assert (verdict.promote, [check.name for check in verdict.checks if not check.passed]) == (
        False,
        ["comparable"],
    )
    assert "so the two cannot be compared: it has other classes (a, b, c" in verdict.reason
    assert f"`labelmill models promote {new.id} --force`" in verdict.reason
    assert len(moves_of(ledger)) == 1


def test_the_champion_itself_is_not_promoted_again(ledger, trained):
    # Given a champion
    model = trained("old")
    judged(ledger, model)

    # When a person promotes it again, Then that is an error
    with pytest.raises(Conflict, match="already the champion"):
        judged(ledger, model, force=True)

    # When a training run produces the same file, Then it is not an error, and not a promotion
    verdict = judged(ledger, model, how="retrain", force=True)
    assert (verdict.promote, verdict.reason) == (False, "kept: it is already the champion")
    assert len(moves_of(ledger)) == 1


# ---- concurrency --------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_champion", [False, True])
def test_many_promote_at_once_and_the_history_is_a_chain(ledger, ledger_url, trained, with_champion):
    # Given eight models to be promoted at once, with or without a champion, and a process that watches
    first = trained("first")
    if with_champion:
        judged(ledger, first)
    rivals = [trained(f"{number}") for number in range(8)]
    start = threading.Barrier(9, timeout=30)
    done = threading.Event()

    def promote(model: Model) -> None:
        with closing(Ledger(ledger_url)) as own:
            start.wait()
            judged(own, model, force=True)

    def look() -> set[int]:
        seen = set()
        with closing(Ledger(ledger_url)) as own:
            start.wait()
            while not done.is_set():
                with own.reading() as connection:
                    query = sa.select(models.c.id).join(aliases, aliases.c.model_id == models.c.id)
                    seen.add(len(connection.execute(query.where(aliases.c.name == CHAMPION)).all()))
        return seen

    # When all are promoted at the same time
    with ThreadPoolExecutor(9) as pool:
        looking = pool.submit(look)
        try:
            list(pool.map(promote, rivals))
        finally:
            done.set()
        seen = looking.result(30)

    # Then each move continues from the one before, none is missing, and the last one is the champion
    moves = moves_of(ledger)
    assert {model for _, model, _ in moves} >= {model.id for model in rivals}
    assert len(moves) == 8 + with_champion
    assert [previous for previous, _, _ in moves] == [None, *(model for _, model, _ in moves[:-1])]
    assert champion_of(ledger) == moves[-1][1]
    # And there was one champion at any time, or none before the first.
    assert seen <= ({1} if with_champion else {0, 1})


def test_of_two_equal_challengers_at_once_one_is_promoted_and_the_other_compared_with_it(
    ledger, ledger_url, trained
):
    # Given a champion with fifty mistakes, and two models with the same few mistakes
    judged(ledger, trained("old", wrong=50))
    rivals = [trained("one", wrong=5), trained("other", wrong=5)]

    def judge(model: Model) -> Verdict:
        with closing(Ledger(ledger_url)) as own:
            return judged(own, model, how="retrain")

    # When both are judged at the same time
    told = at_once(judge, rivals)

    # Then the second one was compared with the first, not with the earlier champion
    assert sorted(verdict.promote for verdict in told) == [False, True]
    refused = next(verdict for verdict in told if not verdict.promote)
    assert "it gets 0 right that the champion gets wrong and 0 the other way round" in refused.reason


def test_the_history_is_in_order_whatever_the_clocks_say(ledger, trained, monkeypatch):
    # Given promotions by machines whose clocks go backwards
    made = [trained(f"{number}") for number in range(4)]
    now = 1_700_000_000 * 10**9
    for step, model in enumerate(made):
        monkeypatch.setattr(ids.time, "time_ns", lambda back=step: now - back * 10**12)
        judged(ledger, model, force=True)

    # Then the history has them in the order in which they happened
    assert [model for _, model, _ in moves_of(ledger)] == [model.id for model in made]


# ---- rolling back -------------------------------------------------------------------------------------


def rolled_back(ledger: Ledger) -> str:
    with ledger.reading() as connection:
        before = champion_before(connection)
    with ledger.transaction() as connection:
        move = roll_back(connection, before)
    assert (move.model_id, move.how) == (before, "rollback")
    assert champion_of(ledger) == before
    return before


def test_rolling_back_again_goes_further_back_and_then_no_further(ledger, trained):
    # Given four promotions, two of them of the second model; before the first, there is nothing to roll back
    with pytest.raises(Conflict, match="has no champion to roll back"):
        rolled_back(ledger)
    a, b, c = (trained(name) for name in "abc")
    for model in (a, b, c, b):
        judged(ledger, model, force=True)

    # When they are rolled back, Then each rollback goes one step further back
    assert [rolled_back(ledger) for _ in range(3)] == [c.id, b.id, a.id]

    # And there is nothing before the first champion
    with pytest.raises(Conflict, match=f"no champion before {a.id}"):
        rolled_back(ledger)

    # And a later promotion can be rolled back as well
    judged(ledger, c, force=True)
    assert rolled_back(ledger) == a.id
    moves = moves_of(ledger)
    assert [previous for previous, _, _ in moves] == [None, *(model for _, model, _ in moves[:-1])]


def test_a_rollback_that_somebody_else_was_faster_with_changes_nothing(ledger, trained):
    # Given three promotions, and somebody who has looked up the rollback's target
    a, b, c = (trained(name) for name in "abc")
    for model in (a, b, c):
        judged(ledger, model, force=True)
    with ledger.reading() as connection:
        seen = champion_before(connection)

    # When somebody else rolls back first, Then the second rollback is refused, and only one step is taken
    rolled_back(ledger)
    with (
        pytest.raises(Conflict, match="Another process moved"),
        ledger.transaction() as connection,
    ):
        roll_back(connection, seen)
    assert champion_of(ledger) == b.id


# ---- a pinned champion --------------------------------------------------------------------------------


def pin(ledger: Ledger, *, pinned: bool = True) -> Model:
    with ledger.transaction() as connection:
        return pin_champion(connection, pinned=pinned)


@pytest.fixture
def pinned(ledger: Ledger, trained: Maker) -> Model:
    """Return a pinned champion with many mistakes."""
    judged(ledger, trained("old", wrong=40))
    return pin(ledger)


@pytest.mark.parametrize(
    "options", [{"how": "retrain"}, {"how": "retrain", "force": True}, {"how": "promote"}], ids=str
)
def test_nothing_replaces_a_pinned_champion(ledger, trained, pinned, options):
    # When a training run or a person has a better model than the pinned champion
    better = trained("better")
    verdict = judged(ledger, better, **options)

    # Then it is not promoted, and the verdict says what to do
    said = f"the champion {pinned.id} is pinned (labelmill models pin --off releases it)"
    assert (verdict.promote, verdict.forced, verdict.reason) == (False, False, f"not promoted: {said}")
    with ledger.reading() as connection:
        stored = find_verdict(connection, better.id)
    assert [check["name"] for check in stored.checks if not check["passed"]] == ["pin"]

    # And once the champion is released, it is promoted
    assert pin(ledger, pinned=False).pinned_at is None
    assert judged(ledger, better, **options).promote


def test_a_person_who_forces_a_promotion_replaces_it_and_the_pin_does_not_pass_on(ledger, trained, pinned):
    better = trained("better")
    verdict = judged(ledger, better, force=True)
    assert (verdict.promote, verdict.forced) == (True, True)
    assert verdict.reason.startswith(f"force-promoted, although the champion {pinned.id} is pinned")
    with ledger.reading() as connection:
        assert [get_model(connection, each.id).pinned_at for each in (pinned, better)] == [None, None]


def test_a_second_pin_keeps_the_time_of_the_first(ledger, pinned):
    assert pinned.pinned_at is not None
    assert pin(ledger) == pinned


def test_without_a_champion_there_is_nothing_to_pin(ledger):
    for pinned in (True, False):
        with pytest.raises(NotFound, match="Dataset mnist has no model yet"):
            pin(ledger, pinned=pinned)


# ---- the commands -------------------------------------------------------------------------------------


@pytest.fixture
def shelved(ledger: Ledger, store: Store) -> Maker:
    """Return a function: `shelved("a", wrong=3)` is like `trained`, with a file in the store."""

    def shelved(marker: str, wrong: int = 0) -> Model:
        model = register_digits(ledger, store, keras_file(marker.encode()))
        evaluated(ledger, model, wrong)
        return model

    return shelved


@pytest.fixture
def run(run_command) -> Callable[..., tuple[int, str, str]]:
    """Return a function: `run("promote", id)` returns the command's exit code, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        done = run_command(models_command, *arguments)
        return done.exit_code, done.stdout, done.stderr

    return run


def test_promote_rollback_and_history_at_the_console(run, shelved, ledger):
    # Given a champion, a better model and a worse one, and limits
    with ledger.transaction() as connection:
        set_limits(connection, MNIST, GATE)
    old, better, worse = shelved("old", wrong=10), shelved("better"), shelved("worse", wrong=40)
    judged(ledger, old)

    # When the worse one is promoted, Then it is refused with its checks and an exit code of its own
    code, printed, said = run("promote", worse.id)
    assert (code, printed) == (3, "")
    assert "FAILED  accuracy:" in said
    assert "refused: accuracy is 0.6000, below the minimum of 0.967" in said
    code, printed, _ = run("promote", worse.id, "--json")
    told = json.loads(printed)
    assert (code, told["model"], told["promote"]) == (3, worse.id, False)
    assert [check["name"] for check in told["checks"] if not check["passed"]] == [
        "accuracy",
        "class recall",
        "test set",
    ]

    # When the better one is promoted, Then it is the champion
    code, printed, said = run("promote", better.id)
    assert (code, printed) == (0, f"{better.id}\n")
    assert "it gets 10 right" in said
    assert champion_of(ledger) == better.id

    # When the worse one is forced and rolled back
    assert run("promote", worse.id, "--force")[0] == 0
    code, printed, said = run("rollback", "--json")
    told = json.loads(printed)
    assert (code, told["model_id"], told["previous_id"], told["how"]) == (0, better.id, worse.id, "rollback")

    # Then the history has all moves, the latest first
    code, printed, _ = run("history", "--json")
    assert [(move["model_id"], move["how"], move["forced"]) for move in json.loads(printed)] == [
        (better.id, "rollback", False),
        (worse.id, "promote", True),
        (better.id, "promote", False),
        (old.id, "promote", False),
    ]
    code, printed, _ = run("history", "--limit", "2")
    assert [line.split()[2] for line in printed.splitlines()[1:]] == [better.id, worse.id]
    assert "promote, by force" in printed


def test_pinning_at_the_console(run, shelved, ledger):
    # When the champion is pinned, Then the lists say so
    models = shelved("first", wrong=60), shelved("present", wrong=40), shelved("better")
    for model in models[:2]:
        judged(ledger, model, force=True)
    _, champion, better = models
    code, printed, said = run("pin")
    assert (code, printed) == (0, f"{champion.id}\n")
    assert "is pinned: no training run replaces it" in said
    assert "champion (pinned)" in run("list")[1]
    pins = {each["id"]: each["pinned_at"] for each in json.loads(run("list", "--json")[1])}
    assert [pins[each.id] is not None for each in models] == [False, True, False]
    assert json.loads(run("show", champion.id)[1])["pinned_at"] == pins[champion.id]

    # And it is neither replaced nor rolled back
    code, printed, said = run("promote", better.id)
    assert (code, printed) == (3, "")
    assert "not promoted: the champion" in said
    assert "labelmill models pin --off" in run("rollback")[2]
    assert champion_of(ledger) == champion.id

    # When it is released, Then it can be replaced
    code, printed, _ = run("pin", "--off", "--json")
    assert (code, json.loads(printed)) == (0, {"model": champion.id, "pinned_at": None})
    assert "(pinned)" not in run("list")[1]
    assert run("rollback")[0] == 0


@pytest.mark.parametrize("damage", ["gone", "another"])
def test_a_model_whose_file_is_gone_or_changed_is_not_made_the_champion(run, shelved, ledger, store, damage):
    # Given two promotions, and a first model whose file is gone or was replaced
    old, new = shelved("old", wrong=10), shelved("new")
    judged(ledger, old)
    judged(ledger, new)
    path = store.folder / f"models/{old.sha256}.keras"
    path.unlink() if damage == "gone" else path.write_bytes(b"evil code")

    # When that model is to be the champion again, Then that is refused and nothing changes
    for command in (("rollback",), ("promote", old.id, "--force")):
        code, printed, said = run(*command)
        assert (code, printed) == (1, "")
        assert f"The file of model {old.id} is" in said
    assert champion_of(ledger) == new.id
    with pytest.raises(ModelRefused):
        read_stored(store, old)


def test_show_tells_the_latest_evaluation_and_verdict_without_images(run, shelved, ledger):
    # Given a model with twenty mistakes and a verdict
    model = shelved("a", wrong=20)
    judged(ledger, model)

    # When it is shown
    code, printed, _ = run("show", model.id)
    told = json.loads(printed)

    # Then its figures are printed, and the images of its mistakes are not
    assert (code, told["id"], told["evaluation"]["correct"]) == (0, model.id, 80)
    assert told["evaluation"]["data_fingerprint"] == DATA
    assert (len(told["evaluation"]["mistakes"]), "png" in printed) == (20, False)
    assert (told["verdict"]["promote"], told["verdict"]["champion_id"]) == (True, None)

    # And `--json` prints the same
    assert run("show", model.id, "--json")[:2] == (0, printed)
