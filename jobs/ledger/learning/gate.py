"""The promotion gate: a dataset's limits, the decision whether a model passes, and the record of it.

The gate judges by the evaluations that `jobs.ledger.learning.models` stores, so a verdict takes milliseconds
and needs neither the model nor the images. Its checks are in `jobs.models.promotion`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.errors import Conflict
from jobs.ledger.database import insert_into
from jobs.ledger.learning.models import (
    StoredEvaluation,
    add_verdict,
    describe_pin,
    find_evaluation,
    get_model,
    lock_champion,
    move_champion,
)
from jobs.models.evaluation import Part
from jobs.models.model import Model, why_unfit
from jobs.models.promotion import (
    FLOORS,
    GUESSING,
    LIVE_SET,
    TEST_SET,
    Check,
    Compared,
    GateLimits,
    check_better,
    check_guessing,
    check_limits,
    compare_answers,
)
from jobs.schema import db_now, gate_limits

#: The command that creates a missing evaluation.
EVALUATE: Final = "labelmill models evaluate"

#: The name of the check that fails if the champion is pinned.
PIN: Final = "pin"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The gate's decision about one model, and the reasons."""

    promote: bool
    forced: bool  # a person wanted it, whatever the checks say
    checks: tuple[Check, ...]
    reason: str  # one sentence, for people


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
    """Judge a model, record the verdict, and make the model the champion if it passes.

    Everything happens in the caller's transaction, and no other promotion can come between. The champion is
    that of the model's dataset. The model is judged by its evaluation on the data with this fingerprint;
    without one, by its latest. If there is no champion, the model is promoted if it passes GUESSING.
    With `replace=False` an existing champion stays; with `force` it is always replaced. A pinned champion
    stays, unless a person forces a promotion.

    Raises NotFound if the model is unknown. Raises Conflict if it has no such evaluation (unless forced), or
    if `how` is "promote" and it is already the champion.
    """
    model = get_model(connection, model_id)
    champion_id = lock_champion(connection, model.dataset)
    if champion_id == model_id and how == "promote":
        raise Conflict(f"Model {model_id} is already the champion.")
    challenger = find_evaluation(connection, model_id, data_fingerprint)
    if challenger is None and not force:
        raise Conflict(
            f"Model {model_id} was not evaluated yet: run `{EVALUATE} {model_id}`, or promote it without an "
            f"evaluation: `labelmill models promote {model_id} --force`."
        )
    champion = get_model(connection, champion_id) if champion_id is not None else None
    if champion_id == model_id:  # a repeated training run that gave the same file
        verdict = Verdict(False, False, (), "kept: it is already the champion")
    else:
        checks = _checks(connection, limits, model, challenger, champion)
        if champion is not None and champion.pinned_at is not None:
            checks = (Check(PIN, False, describe_pin(champion)), *checks)
            force = force and how == "promote"
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


def own_limits(connection: Connection, dataset: str) -> dict[str, float | None]:
    """Return the limits that were set for this dataset; None if one was switched off."""
    query = sa.select(gate_limits.c.limits).where(gate_limits.c.dataset == dataset)
    return dict(connection.scalar(query) or {})


def limits_of(connection: Connection, dataset: str) -> GateLimits:
    """Return what a model must reach to become the dataset's champion."""
    own: dict[str, Any] = own_limits(connection, dataset)
    return GateLimits(**own)


def set_limits(connection: Connection, dataset: str, limits: Mapping[str, float | None]) -> None:
    """Set these limits for the dataset in place of all that were set before."""
    values = {"limits": dict(limits), "changed_at": db_now()}
    connection.execute(
        insert_into(connection, gate_limits)
        .values(dataset=dataset, **values)
        .on_conflict_do_update(index_elements=[gate_limits.c.dataset], set_=values)
    )


def _checks(
    connection: Connection,
    limits: GateLimits,
    model: Model,
    challenger: StoredEvaluation | None,
    champion: Model | None,
) -> tuple[Check, ...]:
    """Run all checks, in the order in which they are shown."""
    if challenger is None:
        return (Check("comparable", False, "it was not evaluated"),)
    limited = check_limits(limits, challenger.evaluation)
    if champion is None:
        guessing = check_guessing(challenger.evaluation)
        return limited if guessing is None else (guessing, *limited)
    floors = tuple(check for check in limited if check.name in FLOORS)
    others = tuple(check for check in limited if check.name not in FLOORS)
    before = find_evaluation(connection, champion.id, challenger.data_fingerprint)
    unfit = why_unfit(champion, model.classes)
    if unfit is not None:
        text = (
            f"the champion {champion.id} cannot be evaluated on the same images, so the two cannot be "
            f"compared: {unfit}. `labelmill models promote {model.id} --force` promotes this one anyway"
        )
    elif before is None:
        text = (
            f"the champion {champion.id} was not evaluated on the same images: "
            f"`{EVALUATE} {model.id}` evaluates both"
        )
    else:
        test = compare_answers(challenger.answers, before.answers)
        live = _compare_live(connection, model.id, champion.id)
        return (
            Check("comparable", True, f"the champion {champion.id} was evaluated on the same images"),
            *floors,
            *check_better(limits, test, live),
            *others,
        )
    return (Check("comparable", False, text), *limited)


def _compare_live(connection: Connection, model_id: str, champion_id: str) -> Compared | None:
    """Compare both models on the model's latest live set; None if there is none."""
    ours = find_evaluation(connection, model_id, part=Part.LIVE)
    if ours is None:
        return None
    theirs = find_evaluation(connection, champion_id, ours.data_fingerprint, part=Part.LIVE)
    return None if theirs is None else compare_answers(ours.answers, theirs.answers)


def _verdict(checks: tuple[Check, ...], champion_id: str | None, *, force: bool, replace: bool) -> Verdict:
    failed = "; ".join(check.text for check in checks if not check.passed)
    if force:
        return Verdict(True, True, checks, "force-promoted" + (f", although {failed}" if failed else ""))
    if champion_id is None:
        worse = next((check for check in checks if check.name == GUESSING and not check.passed), None)
        if worse is not None:
            advice = "train with more images, or promote it with --force"
            return Verdict(False, False, checks, f"refused: {worse.text}; {advice}")
        reason = "promoted: there was no champion" + (f" (although {failed})" if failed else "")
        return Verdict(True, False, checks, reason)
    if checks[0].name == PIN:
        return Verdict(False, False, checks, f"not promoted: {checks[0].text}")
    if not replace:
        return Verdict(False, False, checks, f"not promoted: {champion_id} stays the champion")
    if failed:
        return Verdict(False, False, checks, f"refused: {failed}")
    decided = "; ".join(check.text for check in checks if check.name in (TEST_SET, LIVE_SET))
    return Verdict(True, False, checks, f"promoted: {decided}")
