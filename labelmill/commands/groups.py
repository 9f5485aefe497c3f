"""Command groups whose bare name lists things: `labelmill keys` is `labelmill keys list`."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from jobs.ids import id_range
from jobs.ledger.jobs.queries import MIN_BEGINNING
from labelmill.console.terminal import examples


def listing_group(help_text: str, *lines: str) -> typer.Typer:
    """Return a group with this help and these examples. It needs a command `list`."""
    return typer.Typer(
        add_completion=False,
        cls=_ListingGroup,
        help=f"{help_text} Without a command, list them.",
        epilog=examples(*lines),
    )


class _ListingGroup(TyperGroup):
    """A group that runs its command `list` if none is given."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments. Options without a command are those of `list`."""
        is_list = not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names)
        if is_list and not ctx.resilient_parsing:  # a shell that completes a command wants all of them
            args = ["list", *args]
        found: list[str] = super().parse_args(ctx, args)
        return found

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command. Raises UsageError if there is none; for an id, the error suggests `show`."""
        text = args[0].strip().lower()
        is_id = len(text) >= MIN_BEGINNING and id_range(text) and text not in self.commands
        if is_id and "show" in self.commands:
            ctx.fail(f"{args[0]!r} is not a command. To see what has this id: {ctx.command_path} show {text}")
        return super().resolve_command(ctx, args)
