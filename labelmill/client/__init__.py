"""The Python client: everything that the console command does.

`Client` has its methods from `jobs` (submit, follow, read), `models` (register, evaluate, promote),
`training` (retrain, correct), `datasets`, `backbones`, `schedules` and `gate`. Importing this package never
imports TensorFlow; only `register`, `evaluate` and `add_backbone` load it.
"""

from __future__ import annotations

from labelmill.client.backbones import BackboneMethods
from labelmill.client.datasets import DatasetMethods
from labelmill.client.gate import GateMethods
from labelmill.client.jobs import JobMethods
from labelmill.client.models import ModelMethods
from labelmill.client.schedules import ScheduleMethods

__all__ = ["Client"]


class Client(JobMethods, ModelMethods, ScheduleMethods, DatasetMethods, BackboneMethods, GateMethods):
    """A connection to one Labelmill installation: its ledger, object store and broker.

    Use it as a context manager, or call `close` at the end. Do not share one client between threads. Every
    method raises Unavailable if the ledger or the store cannot be reached. All errors are subclasses of
    LabelmillError. Arguments may be NumPy numbers. Example::

        from labelmill import Client

        with Client() as client:
            job = client.submit("photos/")
            client.wait(job)
            for prediction in client.predictions(job, below=0.6):
                print(prediction.name, prediction.label, prediction.confidence)
    """
