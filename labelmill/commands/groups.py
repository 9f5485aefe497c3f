"""Command groups that list things by default, and suggest `show` for an id."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

from jobs.ids import id_range
from jobs.ledger.jobs.queries import MIN_BEGINNING


class ListingGroup(TyperGroup):
    """A command group that, given an id instead of a command, says how to `show` it."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command. Raises UsageError if there is none; for an id, the error suggests `show`."""
        text = args[0].strip().lower()
        if len(text) >= MIN_BEGINNING and id_range(text) and text not in self.commands:
            ctx.fail(f"{args[0]!r} is not a command. To see what has this id: {ctx.command_path} show {text}")
        return super().resolve_command(ctx, args)
