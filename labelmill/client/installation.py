"""The base of the client: settings, ledger, store, broker, and conversion of NumPy numbers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, wraps
from numbers import Integral, Real
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from jobs.ledger import Ledger
from jobs.ledger.api.audit import OnChange
from jobs.settings import Settings
from jobs.storage.store import Store
from labelmill.client.migrating import open_ledger
from labelmill.client.shared import CommonMethods

if TYPE_CHECKING:
    from jobs.queue import Publisher
    from jobs.traces import Tracing

P = ParamSpec("P")
R = TypeVar("R")


def accept_numpy_numbers(method: Callable[P, R]) -> Callable[P, R]:
    """Convert the NumPy numbers among a method's arguments to Python numbers.

    Python's SQLite driver would store and compare a NumPy number as its bytes, without an error.
    """

    def to_python(value: object) -> object:
        if isinstance(value, Integral) and not isinstance(value, int):
            return int(value)
        return float(value) if isinstance(value, Real) and not isinstance(value, int) else value

    @wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return method(*map(to_python, args), **{name: to_python(value) for name, value in kwargs.items()})  # type: ignore[arg-type]

    return call


class Installation(CommonMethods):
    """A connection to one Labelmill installation."""

    def __init__(self, settings: Settings | None = None, *, ledger: Ledger | None = None) -> None:
        """Open the ledger. Without `settings`, read `LABELMILL_*` from the environment.

        With `ledger`, use this one, which the caller checks and closes: several clients may share it.

        The embedded ledger is created and migrated if necessary. Raises SettingsError if a setting is
        malformed, LedgerNotReady if a deployed ledger needs `labelmill db upgrade`, Unavailable if the ledger
        cannot be reached.
        """
        self.settings = settings or Settings.load()
        self._owns_ledger = ledger is None
        self.ledger: Ledger = open_ledger(self.settings) if ledger is None else ledger
        #: The HTTP API writes its audit here.
        self.on_change: OnChange = lambda *_: None
        self._publisher: Publisher | None = None

    @property
    def broker_unavailable(self) -> bool:
        """Whether the latest request could not wake a worker or trainer; the reconciler will do so later."""
        return self._publisher is not None and self._publisher.unavailable

    @property
    def broker_error(self) -> str:
        """Why the broker could not be used, in a few words; empty if it could be used."""
        return self._publisher.reason if self._publisher is not None else ""

    @property
    def is_open(self) -> bool:
        """Whether there is a connection to close."""
        return self._owns_ledger or self._publisher is not None or "_tracing" in self.__dict__

    def close(self) -> None:
        """Close the connections."""
        if self._owns_ledger:
            self.ledger.close()
        if self._publisher is not None:
            self._publisher.close()
        if "_tracing" in self.__dict__:  # do not open it only to close it
            self._tracing.close()

    @cached_property
    def store(self) -> Store:
        """The object store with the images and models."""
        return Store(self.settings.store)

    def _broker(self) -> Publisher:
        # Imported here: Celery is slow to import, and most commands only read.
        from jobs.queue import Publisher, make_app

        # Kept: connecting takes as long as the rest of submitting one image.
        if self._publisher is None:
            self._publisher = Publisher(make_app(self.settings))
        return self._publisher.reset()

    @cached_property
    def _tracing(self) -> Tracing:
        from jobs.traces import open_tracing

        return open_tracing("labelmill-producer")
