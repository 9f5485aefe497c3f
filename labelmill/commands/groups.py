"""Groups of commands that list things where no command is named, and say how to show one of them."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

from jobs.ids import first_id, is_id
from jobs.ledger.queries import MIN_BEGINNING


class ListingGroup(TyperGroup):
    """A group where somebody may type the id of what it lists: that is no command, and `show` takes it."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As any group, but for an id. Raises UsageError."""
        text = args[0].strip().lower()
        if len(text) >= MIN_BEGINNING and is_id(first_id(text)) and text not in self.commands:
            ctx.fail(f"{args[0]!r} is no command. To see what has this id: {ctx.command_path} show {text}")
        return super().resolve_command(ctx, args)
