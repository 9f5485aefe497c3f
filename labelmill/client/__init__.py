"""`Client`, Labelmill from Python: everything that the console command does with jobs and models.

Its methods are in `jobs` (submit, follow, read), `models` (register, evaluate, promote) and `training`
(retrain, correct). Importing it never imports TensorFlow; only `register` and `evaluate` load it.
"""

from __future__ import annotations

from labelmill.client.jobs import JobMethods
from labelmill.client.models import ModelMethods
from labelmill.client.training import TrainingMethods

__all__ = ["Client"]


class Client(JobMethods, ModelMethods, TrainingMethods):
    """A connection to one Labelmill: its ledger, its object store and its broker.

    Use it as a context manager, or call `close` at the end. Do not share one between threads. Every method
    raises Unavailable if the ledger or the store cannot be reached. All errors are subclasses of
    LabelmillError. Numbers may be NumPy's. An example::

        from labelmill import Client

        with Client() as client:
            job = client.submit("photos/")
            client.wait(job)
            for prediction in client.predictions(job, below=0.6):
                print(prediction.name, prediction.label, prediction.confidence)
    """
