"""Whether a model becomes the champion: the gate, and what is done about its verdict.

Judged is what `jobs.ledger.evaluations` has recorded, so that a verdict takes milliseconds and needs neither
the model nor the images. `jobs.ledger.promotions` keeps verdicts and moves.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Final, Literal

from sqlalchemy.engine import Connection

from jobs.errors import Conflict
from jobs.evaluation import Evaluation, GateLimits
from jobs.ledger.evaluations import StoredEvaluation, find_evaluation
from jobs.ledger.models import get_model
from jobs.ledger.promotions import add_verdict, lock_champion, move_champion
from jobs.model import Model

#: What makes an evaluation, where one is missing.
EVALUATE: Final = "labelmill models evaluate"


@dataclass(frozen=True, slots=True)
class Check:
    """One of the gate's questions, and how a model stood it."""

    name: str
    passed: bool
    text: str  # for people to read


@dataclass(frozen=True, slots=True)
class Verdict:
    """Promote or not, and why."""

    promote: bool
    forced: bool  # whatever the checks say, because a person wanted it
    checks: tuple[Check, ...]
    reason: str  # one sentence, for people to read


def judge_and_promote(
    connection: Connection,
    limits: GateLimits,
    model_id: str,
    *,
    how: Literal["retrain", "promote"],
    run_id: str | None = None,
    force: bool = False,
    replace: bool = True,
    data_fingerprint: str | None = None,
) -> Verdict:
    """Judges a model by its recorded evaluation on the data with this fingerprint, or by its latest, and
    makes it the champion where it passes; all within the caller's transaction, which nobody else's promotion
    crosses. The verdict becomes a row, the promotion another one.

    Without a champion the first model is taken whatever it reaches; without `replace` a champion stays
    whatever comes; with `force` it goes. Raises NotFound for an unknown model; Conflict where it has no such
    evaluation, unless forced, or a person promotes the champion itself.
    """
    champion_id = lock_champion(connection)
    model = get_model(connection, model_id)
    if champion_id == model_id and how == "promote":
        raise Conflict(f"Model {model_id} is the champion already.")
    challenger = find_evaluation(connection, model_id, data_fingerprint)
    if challenger is None and not force:
        raise Conflict(
            f"Model {model_id} was not evaluated yet: `{EVALUATE} {model_id}` does it, and "
            f"`labelmill models promote {model_id} --force` promotes it without."
        )
    champion = get_model(connection, champion_id) if champion_id is not None else None
    if champion_id == model_id:  # a training that was repeated to the last bit
        verdict = Verdict(False, False, (), f"kept: it is the champion {champion_id} once more")
    else:
        checks = _checks(connection, limits, model, challenger, champion)
        verdict = _verdict(checks, champion_id, force=force, replace=replace)
    verdict_id = add_verdict(
        connection,
        run_id=run_id,
        model_id=model_id,
        champion_id=champion_id,
        promote=verdict.promote,
        forced=verdict.forced,
        checks=[asdict(check) for check in verdict.checks],
    )
    if verdict.promote:
        move_champion(connection, model_id, previous_id=champion_id, how=how, verdict_id=verdict_id)
    return verdict


def check_limits(limits: GateLimits, evaluation: Evaluation) -> tuple[Check, ...]:
    """What a model must reach on its own, with a champion or without one."""
    accuracy = _floor("accuracy", "accuracy", evaluation.accuracy, limits.min_accuracy)
    recalls = {
        name: share
        for name, share in zip(evaluation.classes, evaluation.recall, strict=True)
        if share is not None
    }
    worst = min(recalls, key=lambda name: recalls[name])
    return (
        accuracy,
        _floor(
            "class recall", f"the share recognised of class {worst}", recalls[worst], limits.min_class_recall
        ),
        _ceiling(
            "calibration",
            "calibration error",
            evaluation.calibration_error,
            limits.max_calibration_error,
            4,
        ),
        _ceiling(
            "speed",
            "microseconds an image",
            evaluation.image_microseconds,
            limits.max_image_microseconds,
            1,
        ),
    )


def check_better(limits: GateLimits, challenger: bytes, champion: bytes) -> Check:
    """Whether more of the same images are right, and more than chance explains: McNemar's test on the answers
    of both, as `jobs.ledger.evaluations` keeps them. Raises ValueError where they are not to the same images.
    """
    truth = challenger[1::2]
    if truth != champion[1::2]:
        raise ValueError("the answers are not to the same images")
    gained = lost = 0
    for label, ours, theirs in zip(truth, challenger[::2], champion[::2], strict=True):
        gained += ours == label != theirs
        lost += theirs == label != ours
    p = mcnemar(gained, lost)
    passed = gained > lost and p < limits.significance
    wanted = "" if passed else f"; wanted is more right, and p below {limits.significance:g}"
    return Check(
        "better",
        passed,
        f"it gets {gained} right that the champion gets wrong and {lost} the other way round, "
        f"p = {p:.2g}{wanted}",
    )


def mcnemar(gained: int, lost: int) -> float:
    """McNemar's exact test, two-sided: how likely two equally good models differ at least so much.

    `gained` images only one of them has right, `lost` only the other: were they equally good, each of these
    n = gained + lost images would be a fair coin's toss. p = min(1, 2 P(Binomial(n, 1/2) <= min(gained,
    lost))). Q. McNemar, "Note on the sampling error of the difference between correlated proportions or
    percentages", Psychometrika 12, 1947; in whole numbers here, so it is right for few images and for many.
    """
    tosses = gained + lost
    ways = outcomes = 1  # to get 0 heads
    for heads in range(1, min(gained, lost) + 1):
        outcomes = outcomes * (tosses - heads + 1) // heads
        ways += outcomes
    p: float = 2 * ways / 2**tosses
    return min(1.0, p)


def _checks(
    connection: Connection,
    limits: GateLimits,
    model: Model,
    challenger: StoredEvaluation | None,
    champion: Model | None,
) -> tuple[Check, ...]:
    """All of them, in order."""
    if challenger is None:
        return (Check("comparable", False, "it was not evaluated"),)
    accuracy, class_recall, *others = check_limits(limits, challenger.evaluation)
    if champion is None:
        return (accuracy, class_recall, *others)
    before = find_evaluation(connection, champion.id, challenger.data_fingerprint)
    if champion.classes != model.classes:
        text = (
            f"the champion's classes are other ones ({', '.join(champion.classes)}), so neither is better: "
            f"`labelmill models promote {model.id} --force` promotes it all the same"
        )
    elif before is None:
        text = (
            f"the champion {champion.id} was not evaluated on the same images: "
            f"`{EVALUATE} {model.id}` does it for both"
        )
    else:
        return (
            Check("comparable", True, f"the champion {champion.id} was evaluated on the same images"),
            accuracy,
            class_recall,
            check_better(limits, challenger.answers, before.answers),
            *others,
        )
    return (Check("comparable", False, text), accuracy, class_recall, *others)


def _verdict(checks: tuple[Check, ...], champion_id: str | None, *, force: bool, replace: bool) -> Verdict:
    failed = "; ".join(check.text for check in checks if not check.passed)
    if force:
        return Verdict(True, True, checks, "promoted by force" + (f", although {failed}" if failed else ""))
    if champion_id is None:
        reason = "promoted: there was no champion" + (f" (although {failed})" if failed else "")
        return Verdict(True, False, checks, reason)
    if not replace:
        return Verdict(False, False, checks, f"kept beside the champion {champion_id}")
    if failed:
        return Verdict(False, False, checks, f"refused: {failed}")
    better = next(check.text for check in checks if check.name == "better")
    return Verdict(True, False, checks, f"promoted: {better}")


def _floor(name: str, what: str, value: float, least: float) -> Check:
    if value < least:
        return Check(name, False, f"{what} is {_told(value, least, 4)}, below the least of {least:g}")
    return Check(name, True, f"{what} is {value:.4f}, {least:g} or more")


def _ceiling(name: str, what: str, value: float, most: float, digits: int) -> Check:
    if value > most:
        return Check(name, False, f"{what} is {_told(value, most, digits)}, over the most of {most:g}")
    return Check(name, True, f"{what} is {value:.{digits}f}, {most:g} or less")


def _told(value: float, limit: float, digits: int) -> str:
    """A value on the wrong side of its limit, with so many digits after the point: rounded away from the
    limit where it would otherwise read as if it kept it.
    """
    rounded, step = float(f"{value:.{digits}f}"), 10.0**-digits
    if value < limit <= rounded:
        rounded -= step
    elif value > limit >= rounded:
        rounded += step
    return f"{rounded:.{digits}f}"
