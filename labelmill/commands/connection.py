"""Choose the client of a command: the HTTP API if LABELMILL_API_URL is set, otherwise the ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs.errors import SettingsError
from jobs.settings import Settings
from labelmill.client import Client
from labelmill.console.terminal import say

if TYPE_CHECKING:
    from labelmill.client.remote import RemoteClient


def open_client() -> Client | RemoteClient:
    """Return the client that the settings ask for. Raises SettingsError, and what `Client` raises."""
    settings = Settings.load()
    if settings.api_url is None:
        return Client(settings)
    if settings.api_key is None:
        raise SettingsError(
            "LABELMILL_API_URL is set, but no key: set LABELMILL_API_KEY, or LABELMILL_API_KEY_FILE. "
            "`labelmill keys create` makes a key, where the server runs."
        )
    from labelmill.client.remote import RemoteClient

    return RemoteClient(
        settings.api_url,
        settings.api_key,
        settings=settings,
        on_retry=lambda why: say(f"{why.rstrip('.')}; trying again"),
    )
