"""The shadow: a challenger that classifies a share of the chunks as well, beside the model of their job.

What it answers changes no outcome. Where the two disagree is counted and kept, in the transaction that
records the chunk, so that a chunk is counted once. `worker.predicting.shadow` compares.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.errors import Conflict
from jobs.ledger.claims import Claim
from jobs.ledger.models import find_champion, get_model, point_alias
from jobs.model import Model
from jobs.schema import aliases, db_now, disagreements, jobs, predictions, shadowed_chunks

#: The alias of the challenger.
SHADOW: Final = "shadow"

#: Built once, as it is asked for a share of all chunks.
_CHALLENGER: Final = sa.select(aliases.c.model_id).where(aliases.c.name == SHADOW)

#: What is said where there is none.
NO_SHADOW: Final = "No model is in the shadow: `labelmill models shadow MODEL` puts one there."

#: Disagreements that are kept of a chunk; all are counted. A bad challenger disagrees on every image.
KEPT_DISAGREEMENTS: Final = 100


@dataclass(frozen=True, slots=True)
class Disagreement:
    """An image that the challenger takes for something else than the model of its job."""

    index: int  # in the job
    label: str  # the challenger's
    confidence: float


@dataclass(frozen=True, slots=True)
class Shadowed:
    """What came of showing a chunk to the challenger."""

    model_id: str  # the challenger
    images: int  # that both had an answer for
    disagreements: int
    kept: Sequence[Disagreement]  # the first ones


@dataclass(frozen=True, slots=True)
class Comparison:
    """What came of the chunks that a challenger has seen so far: of the jobs of one model, or of all."""

    model: str
    chunks: int
    images: int
    disagreements: int
    beside: str | None = None  # the model of the jobs; None: whatever model each had

    @property
    def share(self) -> float | None:
        """The share of the images that they disagree on, 0 to 1; None before the first image."""
        return self.disagreements / self.images if self.images else None


@dataclass(frozen=True, slots=True)
class Disagreed:
    """One disagreement, with what the job's model said."""

    job: str
    index: int
    name: str
    label: str | None  # the job's
    confidence: float | None
    challenger_label: str
    challenger_confidence: float


def find_challenger(connection: Connection, claim: Claim, *, share: float) -> str | None:
    """The model that is to see this chunk too; None where there is none. Costs one row by its primary key,
    and that only for the share of the chunks.
    """
    # A challenger that kills its process, or takes too long, must not do so to the same images twice.
    if claim.attempts > 1 or claim.crashes or not is_shadowed(share, claim.chunk_id):
        return None
    challenger = find_shadow(connection)
    return None if challenger == claim.model_id else challenger


def is_shadowed(share: float, chunk_id: str) -> bool:
    """Whether the chunk is one of this share of them all: always the same answer for the same chunk."""
    drawn = int.from_bytes(hashlib.sha256(chunk_id.encode()).digest()[:8], "big")
    return drawn < share * 2**64


def record_shadowed(connection: Connection, claim: Claim, shadowed: Shadowed) -> None:
    """What the challenger said of the chunk that this transaction records."""
    connection.execute(
        shadowed_chunks.insert().values(
            chunk_id=claim.chunk_id,
            model_id=shadowed.model_id,
            job_id=claim.job_id,
            job_model_id=claim.model_id,
            images=shadowed.images,
            disagreements=shadowed.disagreements,
            created_at=db_now(),
        )
    )
    if shadowed.kept:
        connection.execute(
            disagreements.insert(),
            [
                {"job_id": claim.job_id, "model_id": shadowed.model_id, **asdict(each)}
                for each in shadowed.kept
            ],
        )


def begin_shadow(connection: Connection, model_id: str) -> Model:
    """Makes the model the challenger, in place of the one there is. Raises NotFound; Conflict where there is
    nothing to compare it with.
    """
    model, champion = get_model(connection, model_id), champion_beside(connection)
    if champion.id == model.id:
        raise Conflict(f"Model {model.id} is the champion: it would be compared with itself.")
    if not comparable(champion, model):
        raise Conflict(
            f"Model {model.id} has other classes or another input than the champion {champion.id}: "
            "their labels cannot be compared."
        )
    point_alias(connection, SHADOW, model.id)
    return model


def champion_beside(connection: Connection) -> Model:
    """Whom a challenger is compared with. Raises Conflict where there is none."""
    champion = find_champion(connection)
    if champion is None:
        raise Conflict(
            "There is no champion to compare it with: `labelmill models promote MODEL` makes one, with "
            "--force where it was not evaluated."
        )
    return champion


def comparable(one: Model, other: Model) -> bool:
    """Whether the same pixels and the same labels mean the same to both."""
    return set(one.classes) == set(other.classes) and one.input_spec == other.input_spec


def end_shadow(connection: Connection) -> bool:
    """Nobody is the challenger any more; what was counted stays. False where nobody was."""
    return connection.execute(aliases.delete().where(aliases.c.name == SHADOW)).rowcount == 1


def find_shadow(connection: Connection) -> str | None:
    """The challenger's id, if there is one."""
    found: str | None = connection.scalar(_CHALLENGER)
    return found


def compare(connection: Connection, model_id: str, *, beside: str | None = None) -> Comparison:
    """What came of all chunks that this challenger has seen; of the jobs of one model, where that is named:
    one that agrees with a champion may not agree with the next.
    """
    table = shadowed_chunks.c
    query = sa.select(
        sa.func.count(),
        sa.func.coalesce(sa.func.sum(table.images), 0),
        sa.func.coalesce(sa.func.sum(table.disagreements), 0),
    ).where(table.model_id == model_id)
    if beside is not None:
        query = query.where(table.job_model_id == beside)
    count, images, disagreed = map(int, connection.execute(query).one())
    return Comparison(model_id, count, images, disagreed, beside)


def first_disagreements(connection: Connection, model_id: str, *, beside: str, limit: int) -> list[Disagreed]:
    """Images that this challenger takes for something else than this model; the latest jobs' come first."""
    table = disagreements.c
    query = (
        sa.select(
            table.job_id,
            table.index,
            predictions.c.name,
            predictions.c.label,
            predictions.c.confidence,
            table.label,
            table.confidence,
        )
        .join(predictions, sa.and_(predictions.c.job_id == table.job_id, predictions.c.index == table.index))
        .join(jobs, jobs.c.id == table.job_id)
        .where(table.model_id == model_id, jobs.c.model_id == beside)
        .order_by(table.job_id.desc(), table.index)
        .limit(limit)
    )
    return [Disagreed(*row) for row in connection.execute(query)]
