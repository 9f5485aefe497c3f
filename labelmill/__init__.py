"""Bulk image classification: the console command, the local stack, and the Python client.

from labelmill import Client

with Client() as client:
    job = client.submit("photos/")
    client.wait(job)
    for prediction in client.predictions(job, below=0.6):
        print(prediction.name, prediction.label, prediction.confidence)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from jobs.errors import Conflict, LabelmillError, NotFound, Unavailable, UserError
    from jobs.limits import ErrorLimits
    from labelmill.client import Client
    from labelmill.client.remote import connect
    from producer.follow import NotFinished

__all__ = [
    "Client",
    "Conflict",
    "ErrorLimits",
    "LabelmillError",
    "NotFinished",
    "NotFound",
    "Unavailable",
    "UserError",
    "connect",
]

#: The modules of these names; all other names are in `jobs.errors`.
_MODULES: Final = {
    "Client": "labelmill.client",
    "ErrorLimits": "jobs.limits",
    "NotFinished": "producer.follow",
    "connect": "labelmill.client.remote",
}


def __getattr__(name: str) -> Any:
    # Loaded at first use: the console command imports this package too, and most commands need no Celery.
    if name in __all__:
        return getattr(import_module(_MODULES.get(name, "jobs.errors")), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
