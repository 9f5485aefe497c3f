"""The worker: Celery tasks that classify chunks, and the scheduled retraining of the model."""
