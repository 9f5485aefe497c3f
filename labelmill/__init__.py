"""The face of Labelmill: the console command, the local stack, and `Client`.

from labelmill import Client

with Client() as client:
    job = client.submit("photos/")
    client.wait(job)
    for prediction in client.predictions(job, below=0.6):
        print(prediction.name, prediction.label, prediction.confidence)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobs.limits import ErrorLimits
    from labelmill.client import Client

__all__ = ["Client", "ErrorLimits"]


def __getattr__(name: str) -> Any:
    # Loaded at its first use: the console command imports this package too, and most of it needs no Celery.
    if name == "Client":
        from labelmill.client import Client

        return Client
    if name == "ErrorLimits":
        from jobs.limits import ErrorLimits

        return ErrorLimits
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
