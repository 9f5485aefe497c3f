"""One chunk from its message to its rows: claim, read, decode, predict, record. Small ones, many at a time.

The steps are told apart here; how images become outcomes is in `worker.predicting.batches`, how a picture is
decoded in `worker.predicting.decode`, how a batch is predicted in `worker.predicting.classifier`, and what is
written in `jobs.ledger.outcomes`. A challenger may see the same batches, see `worker.predicting.shadow`. What
is said of it all, in the log and in traces, is in `worker.predicting.telling`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Final, TypeVar

from billiard.exceptions import SoftTimeLimitExceeded
from sqlalchemy.engine import Connection
from structlog.contextvars import bind_contextvars, clear_contextvars, get_contextvars

from jobs.errors import ErrorCode, JobError, JobStopped, LeaseLost, Unavailable
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.claims import (
    Claim,
    claim_chunk,
    crash_chunk,
    end_job,
    put_back,
    release_chunk,
    were_finished,
    withdraw_claim,
)
from jobs.ledger.gathering import gather_chunks, may_gather, oldest_small
from jobs.ledger.isolation import must_give_up, must_split, outcome_of_the_lone, split_chunk
from jobs.ledger.outcomes import Classified, record_outcomes
from jobs.ledger.parts import set_first_aside
from jobs.ledger.shadows import find_challenger, find_shadow, is_shadowed
from jobs.payloads import Payload, read_payload
from jobs.schema import SMALL_JOB_IMAGES, JobState
from worker.again import try_again
from worker.bench import Bench
from worker.predicting.batches import OutOfReach, another_is_there, classify_payloads
from worker.predicting.lookout import Lookout
from worker.predicting.shadow import TIME_SHARE, Shadow
from worker.predicting.stages import Stages
from worker.predicting.telling import facts_of, name_in_log, say_done, subject_of, traced
from worker.predicting.time_limit import (
    LEDGER_SILENT,
    images_took_it,
    kept_waiting,
    showing_the_time_limit,
    time_ran_out,
)

if TYPE_CHECKING:
    from worker.predicting.classifier import Classifier

T = TypeVar("T")

logger = logging.getLogger(__name__)

#: Images of small chunks that are classified together: a full batch (`worker.predicting.classifier.BATCH`).
GATHERED_IMAGES: Final = 512

#: How long to wait before outcomes that are ready are written again: a database that is restarted takes
#: seconds, and what was computed would have to be computed again.
_WRITE_AGAIN_SECONDS: Final = (0.1, 0.5, 1.0, 2.0)


def classify_chunk(chunk_id: str, bench: Bench) -> int:
    """Classifies the chunk if it is ours to take, and where it is a small one, others that wait along with
    it; gives back how many images were recorded, 0 if it was not ours.

    Raises nothing that is the fault of an image, the job or a service: those end as outcomes, as a failed
    job, or as a chunk given back. What it does raise is a mistake in this program, after giving the chunk
    back with its crash counted.
    """
    try:
        return _attempt(chunk_id, bench, new_id())
    except SoftTimeLimitExceeded:
        return 0


def _attempt(
    chunk_id: str,
    bench: Bench,
    token: str,
    *,
    within: Claim | None = None,
    outer_stages: Stages | None = None,
) -> int:
    """The same, claimed under this token; in the middle of another chunk, if it is `within` one. Raises also
    SoftTimeLimitExceeded, when what it had is given back.
    """
    stages = Stages(within=outer_stages)
    with stages.timed("claim"):
        claimed = _claim(chunk_id, bench, token, within=within)
    if claimed is None:
        logger.debug("chunk %s is not to be had: done, or somebody else's", chunk_id)
        return 0
    claims, challenger_id = claimed
    subject, facts = subject_of(claims), partial(facts_of, claims, stages)
    try:
        name_in_log(claims)
        with showing_the_time_limit():
            if must_split(claims[0]):
                _split(claims[0], bench, stages)
                return 0
            classified = _classify_or_fail(claims, challenger_id, bench, stages)
    except LeaseLost:
        logger.warning(
            "%s: taken over by somebody else; nothing of ours was recorded", subject, extra=facts()
        )
        return 0
    except JobStopped:
        logger.info("%s: dropped, its job was stopped", subject, extra=facts())
        _give_back(bench, claims, error="its job was stopped")
        return 0
    except Unavailable as error:
        # Nobody's fault, and the reconciler rings again. Where the ledger itself is away, the lease runs out.
        logger.warning("%s: given back: %s", subject, error, extra=facts())
        _give_back(bench, claims, error=str(error))
        return 0
    except (SystemExit, KeyboardInterrupt):
        _give_back(bench, claims, error="its worker was told to stop")
        logger.info("%s: given back: the worker was told to stop", subject, extra=facts())
        raise
    except (SoftTimeLimitExceeded, MemoryError) as error:
        # Not raised: Celery answers a MemoryError of a child with the end of the whole worker.
        _give_back_at_limit(error, claims, bench, stages)
        return 0
    except BaseException as error:
        _crash(bench, claims, code=ErrorCode.QUARANTINED, error=repr(error))
        # In one line: Celery tells the traceback.
        logger.error("%s: crashed: %s", subject, repr(error), extra=facts())
        raise
    return say_done(classified, stages)


def _serve(small_id: str, *, within: Claim, bench: Bench, outer_stages: Stages) -> None:
    """Classifies a small job that waits, in the middle of a large chunk, and others along with it. Raises
    what concerns all that this process is at, and nothing else.

    Under the large chunk's token: where this process dies, it is known by the message of that one, and all
    that it was at is buried (`jobs.ledger.claims.bury_claim`).
    """
    ours = get_contextvars()
    try:
        _attempt(small_id, bench, within.token, within=within, outer_stages=outer_stages)
    except Unavailable as error:
        if time_ran_out(error):
            raise SoftTimeLimitExceeded from error
        logger.warning("%s", error)
    except SoftTimeLimitExceeded:
        raise
    except Exception:
        logger.exception("a mistake in this program, met by a small job")
    finally:
        clear_contextvars()  # of the small job's ids
        bind_contextvars(**ours)


def _split(claim: Claim, bench: Bench, stages: Stages) -> None:
    _write(bench.ledger, [claim], lambda connection: split_chunk(connection, claim))
    logger.warning(
        "chunk %s of %d images crashed (%s) and was split",
        claim.chunk_id,
        claim.images,
        claim.error,
        extra=facts_of([claim], stages),
    )


def _set_first_aside(claim: Claim, error: Unavailable, bench: Bench, stages: Stages) -> None:
    """A server that answers an error for one image alone, and for good, would have the others wait behind it
    for ever.
    """
    rest_id = new_id()
    _write(
        bench.ledger,
        [claim],
        lambda connection: set_first_aside(connection, claim, error=str(error), rest_id=rest_id),
    )
    logger.warning(
        "chunk %s: its first image is out of reach, others are not: it waits by itself: %s",
        claim.chunk_id,
        error,
        extra=facts_of([claim], stages),
    )
    bench.bell.anew().ring([rest_id], ahead=True)


def _fail(bench: Bench, claims: list[Claim], error: JobError, stages: Stages) -> None:
    """Ends the chunks' jobs, which cannot go on. Raises Unavailable."""
    for claim in claims:
        facts = facts_of([claim], stages) | {"job": claim.job_id, "chunk": claim.chunk_id}
        logger.error("job %s cannot go on: %s", claim.job_id, error, extra=facts)
        with stages.timed("record"), bench.ledger.transaction() as connection:
            # The chunk first, as everywhere: two who lock them in different orders wait for each other.
            release_chunk(connection, claim, error=str(error))
            end_job(connection, claim.job_id, JobState.FAILED, error=str(error))


def _give_back_at_limit(error: Exception, claims: list[Claim], bench: Bench, stages: Stages) -> None:
    """Gives back what ran out of time or memory: with a crash where its images may have done it. Raises the
    time limit again, which strikes once and concerns all that this process is at.
    """
    code = None
    if isinstance(error, MemoryError):
        code, reason = ErrorCode.QUARANTINED, "it ran out of memory"
    elif images_took_it(claims, stages):
        code, reason = ErrorCode.TIMEOUT, "it took longer than its time limit"
    else:
        reason = kept_waiting(stages)
    logger.warning("%s: given back: %s", subject_of(claims), reason, extra=facts_of(claims, stages))
    if code is None:
        _give_back(bench, claims, error=reason)
    else:
        _crash(bench, claims, code=code, error=reason)
    if isinstance(error, SoftTimeLimitExceeded):
        raise error


def _classify_or_fail(
    claims: list[Claim], challenger_id: str | None, bench: Bench, stages: Stages
) -> list[Classified]:
    """What was recorded; where the jobs cannot go on they end, and it is nothing. Raises whatever ends the
    attempt, also in the middle of that: the job fails at its chunk's next attempt.
    """
    work = partial(_classify, claims, challenger_id, bench, stages)
    try:
        with showing_the_time_limit():  # no job fails by what others make of it
            return traced(claims, stages, bench.tracing, work)
    except JobError as error:
        _fail(bench, claims, error, stages)
        return []


def _classify(
    claims: list[Claim], challenger_id: str | None, bench: Bench, stages: Stages
) -> list[Classified]:
    """From the payloads to the rows; gives back what was recorded. Raises whatever ends the attempt."""
    classified = _outcomes(claims, challenger_id, bench, stages)
    if not classified:
        return []
    kept = [one.claim for one in classified]
    with stages.timed("record"):
        recorded = _write(
            bench.ledger,
            kept,
            lambda connection: record_outcomes(connection, classified, stages.spent()),
        )
    if (rest_id := classified[0].rest_id) is not None:
        bench.bell.anew().ring([rest_id], ahead=True)  # its job may be the oldest, and has waited its turn
    # Of what an earlier COMMIT had recorded whose answer was lost, nobody said which chunks these were.
    return classified if recorded is None else [one for one in classified if one.claim.chunk_id in recorded]


def _claim(
    chunk_id: str, bench: Bench, token: str, *, within: Claim | None
) -> tuple[list[Claim], str | None] | None:
    """The claims, that on this chunk first, and the challenger that is to see it, if one is.

    Rings for a small job that waits, which may have no message: there were enough of them when it came, and
    all may have been for jobs that are done by now. Raises Unavailable.
    """
    try:
        with showing_the_time_limit():
            # Not durable: where the claim is lost, so is the token, and nothing can be recorded under it.
            with bench.ledger.transaction(durable=False) as connection:
                claimed = _take(connection, chunk_id, token, bench)
                is_large = claimed is not None and claimed[0][0].images > SMALL_JOB_IMAGES
                left = None if is_large else oldest_small(connection)
            if left is not None:
                bench.bell.anew().ring_for_small(left)
        return claimed
    except (Unavailable, SoftTimeLimitExceeded) as error:
        # Committed or not: nobody is going to work on it, which must not look like a crash later.
        keep = None if within is None else within.chunk_id
        _let_go(bench, lambda connection: withdraw_claim(connection, token, keep=keep))
        if isinstance(error, SoftTimeLimitExceeded):
            raise Unavailable(LEDGER_SILENT) from error
        raise


def _take(
    connection: Connection, chunk_id: str, token: str, bench: Bench
) -> tuple[list[Claim], str | None] | None:
    claim = claim_chunk(
        connection,
        chunk_id,
        lease_seconds=bench.settings.lease_seconds,
        owner=bench.owner,
        token=token,
    )
    if claim is None:
        return None
    challenger_id = find_challenger(connection, claim, share=bench.settings.shadow_share)
    if challenger_id is not None or not may_gather(claim):
        return [claim], challenger_id
    return [claim, *_gather(connection, claim, bench)], None


def _gather(connection: Connection, claim: Claim, bench: Bench) -> list[Claim]:
    share = bench.settings.shadow_share
    # What a challenger is to see is left alone, to be shown to it. This chunk, where it is of the share, has
    # asked for the challenger already, and there is none.
    shadowed = (
        share > 0
        and not is_shadowed(share, claim.chunk_id)
        and find_shadow(connection) not in (None, claim.model_id)
    )
    return gather_chunks(
        connection,
        claim,
        images=GATHERED_IMAGES - claim.images,
        lease_seconds=bench.settings.lease_seconds,
        owner=bench.owner,
        leave_out=partial(is_shadowed, share) if shadowed else None,
    )


def _outcomes(
    claims: list[Claim], challenger_id: str | None, bench: Bench, stages: Stages
) -> list[Classified]:
    """What came of the claims, but of those whose payload is damaged: their jobs have failed. Of a lone one
    it may be the first images only.
    """
    # The first is read before the model is loaded, and by itself: what waits for the store is no decoding.
    sources = _payloads(claims, bench, stages)
    first = next(sources, None)
    if first is None:
        return []
    lead, payload = first
    if must_give_up(lead):
        return [Classified(lead, [outcome_of_the_lone(lead, payload.names[0])])]
    with stages.timed("load"):
        classifier = bench.classifier(lead.model_id)
    kept: list[Claim] = []
    serve = partial(_serve, within=lead, bench=bench, outer_stages=stages)
    # What a challenger says is counted once a chunk: it sees all of one.
    lookout = Lookout(bench, claims, stages, serve, may_share=challenger_id is None)

    def payloads() -> Iterator[Payload]:
        for claim, payload in chain([first], sources):
            kept.append(claim)
            yield payload
            # How many may be gathered is reckoned in images, and one may be a photograph that takes a second.
            # Asked first: to look for what is left costs more than to classify it.
            if lookout.takes_long():
                others = claims[claims.index(claim) + 1 :]
                if others and _put_back(bench, others, stages):
                    return

    classify = partial(
        classify_payloads,
        payloads(),
        classifier,
        roots=bench.roots,
        limits=bench.settings.image_limits,
        image_seconds=bench.settings.image_seconds,
        until=lookout.until,
        may_keep=lookout.may_keep,
        stages=stages,
    )
    shadow = None
    if challenger_id is not None:
        with stages.timed("shadow"):  # to load it may take longer than all it says
            shadow = _shadow(lead, challenger_id, classifier, bench)
    try:
        found = classify() if shadow is None else classify(after_batch=stages.timed("shadow")(shadow.see))
    except OutOfReach as error:
        # What was through would have been kept: it is the first that is not to be had.
        if not lookout.may_set_first_aside(error) or not another_is_there(
            payload, bench.roots, bench.settings.image_limits, stages
        ):
            raise
        _set_first_aside(lead, error, bench, stages)
        return []
    kept = list(map(lookout.claim_of, kept))
    starts = accumulate((claim.images for claim in kept), initial=0)
    return [
        Classified(
            claim,
            found[start : start + claim.images],
            None if shadow is None else shadow.result(),  # only a lone chunk has one
            new_id() if len(kept) == 1 and len(found) < claim.images else None,
        )
        for claim, start in zip(kept, starts, strict=False)  # the last start is where all ends
    ]


def _payloads(claims: list[Claim], bench: Bench, stages: Stages) -> Iterator[tuple[Claim, Payload]]:
    """The payload of each claim, read when it is asked for. Where one is damaged, its job fails, and nothing
    comes for it. Raises Unavailable.
    """
    for claim in claims:
        try:
            with stages.timed("read"):
                payload = read_payload(
                    bench.store,
                    claim.payload,
                    claim.payload_digest,
                    offset=claim.payload_offset,
                    images=claim.images,
                )
        except JobError as error:
            _fail(bench, [claim], error, stages)
            continue
        yield claim, payload


def _shadow(claim: Claim, challenger_id: str, classifier: Classifier, bench: Bench) -> Shadow | None:
    challenger = bench.challenger(challenger_id)
    if challenger is None:
        return None
    seconds = bench.settings.soft_time_limit * TIME_SHARE
    return Shadow(challenger_id, challenger, classifier, first_index=claim.first_index, seconds=seconds)


def _write(ledger: Ledger, claims: list[Claim], write: Callable[[Connection], T]) -> T | None:
    """Ends the claims in one transaction, tried again where the ledger is away for a moment. Gives back what
    `write` does; None where an earlier try had gone through, of which that was not heard.

    Raises LeaseLost, Unavailable. A COMMIT that breaks off may have gone through: the token in the row tells.
    Where the time limit struck it is not tried again: the hard one is near.
    """

    def once() -> T:
        with ledger.transaction() as connection:
            return write(connection)

    try:
        return try_again(once, _WRITE_AGAIN_SECONDS)
    except LeaseLost:
        with ledger.reading() as connection:
            if were_finished(connection, claims):  # by us: an earlier COMMIT had gone through
                return None
        raise


def _give_back(bench: Bench, claims: list[Claim], *, error: str) -> None:
    def release(connection: Connection) -> None:
        for claim in claims:
            release_chunk(connection, claim, error=error)

    _let_go(bench, release)


def _put_back(bench: Bench, claims: list[Claim], stages: Stages) -> bool:
    """Gives back what was gathered and not begun; whether that worked, for the ledger may be away."""
    try:
        with stages.timed("claim"), bench.ledger.transaction() as connection:
            put_back(connection, claims)
    except Unavailable as error:
        if time_ran_out(error):
            raise
        return False
    logger.info(
        "%d small chunks that were taken along are given back: those before them took long", len(claims)
    )
    bench.bell.anew().ring((claim.chunk_id for claim in claims), ahead=True)
    return True


def _crash(bench: Bench, claims: list[Claim], *, code: ErrorCode, error: str) -> None:
    def crash(connection: Connection) -> None:
        for claim in claims:
            crash_chunk(connection, claim, code=code, error=error)

    _let_go(bench, crash)


def _let_go(bench: Bench, end: Callable[[Connection], None]) -> None:
    """Ends a claim without outcomes. Where the ledger is away, its lease runs out.

    Again where the time limit strikes in here, which it does once: a lease that runs out counts as a crash.
    """
    for _ in range(2):
        try:
            with showing_the_time_limit(), bench.ledger.transaction() as connection:
                end(connection)
        except SoftTimeLimitExceeded:
            continue
        except Unavailable:
            pass
        return
