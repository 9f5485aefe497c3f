"""Examples of what the API takes and returns, by the name of the object: one batch of three photos."""

from __future__ import annotations

from typing import Any, Final

BATCH_ID: Final = "06h0w4r0rf0dkckt"
FILE_ID: Final = "file-06h2a6v1nbdtxp2r"
MODEL_ID: Final = "06h0w99y8275b8s6"
RUN_ID: Final = "06h0vz3k8d1tq4xm"
WEBHOOK_ID: Final = "06h0x1b4q7k2s6np"
DATASET: Final = "animals"

_CREATED, _READ, _STARTED, _ENDED = 1_796_112_000, 1_796_112_002, 1_796_112_003, 1_796_112_009
_SHA256: Final = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
_TEXT: Final = "2026-12-01T08:00:00Z"

_SECRET: Final = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo="  # noqa: S105 -- an example

_WEBHOOK: Final = {
    "id": WEBHOOK_ID,
    "object": "webhook",
    "url": "https://example.org/hooks/labelmill",
    "events": ["batch.completed", "batch.failed"],
    "created_at": _CREATED,
    "disabled_at": _ENDED,
}

_DELIVERY: Final = {
    "id": "06h0x2c5r8m3v7tq",
    "object": "webhook.delivery",
    "event": "batch.completed",
    "url": _WEBHOOK["url"],
    "status": "pending",
    "attempts": 1,
    "answer": 503,
    "error": "it answered 503",
    "created_at": _CREATED,
    "due_at": _READ,
    "finished_at": _ENDED,
}

_OPTIONS: Final = {
    "by_reference": False,
    "model": MODEL_ID,
    "dataset": DATASET,
    "metadata": {"album": "7"},
    "priority": 0,
    "top_k": 3,
    "max_errors": 100,
    "max_error_rate": 0.05,
    "min_sample": 1_000,
    "delete_input": True,
    "webhook_url": "https://example.org/hooks/labelmill",
    "endpoint": "/v1/classifications",
    "completion_window": "24h",
}

_TRAINING: Final = {
    "architecture": "finetune",
    "profile": "quick",
    "backbone": "efficientnetv2b0",
    "start": MODEL_ID,
    "size": 96,
    "augment": "photos",
    "max_minutes": 30.0,
}

_COUNTS: Final = {"total": 3, "completed": 2, "failed": 1}

_JOB: Final = {
    "id": BATCH_ID,
    "project": "default",
    "state": "done",
    "total": 3,
    "succeeded": 2,
    "failed": 1,
    "model": MODEL_ID,
    "key": None,
    "error": None,
    "paused": False,
    "top_k": 3,
    "retry_of": None,
    "created_at": _TEXT,
    "submitted_at": "2026-12-01T08:00:02Z",
    "started_at": "2026-12-01T08:00:03Z",
    "finished_at": "2026-12-01T08:00:09Z",
    "purged_at": None,
    "read_at": "2026-12-01T08:00:12Z",
    "oldest_waiting_at": None,
}

_FAILED_JOB: Final = _JOB | {
    "state": "failed",
    "total": 0,
    "succeeded": 0,
    "failed": 0,
    "key": "monday",
    "error": "photos.csv, line 3: it is not CSV (unexpected end of data).",
    "retry_of": "06h0w3m7q2v9c1ds",
    "purged_at": "2026-12-08T08:00:00Z",
    "oldest_waiting_at": _TEXT,
}

_ERROR: Final = {"code": "batch_failed", "message": _FAILED_JOB["error"], "line": 3, "param": None}

_BATCH: Final = {
    "id": BATCH_ID,
    "object": "batch",
    "status": "completed",
    "created_at": _CREATED,
    "in_progress_at": _READ,
    "completed_at": _ENDED,
    "failed_at": None,
    "cancelled_at": None,
    "request_counts": _COUNTS,
    "rate": 0.5,
    "eta_seconds": None,
    "errors": None,
    "metadata": {"album": "7"},
    "input_file_id": FILE_ID,
    "output_file_id": f"file-{BATCH_ID}-output",
    "error_file_id": f"file-{BATCH_ID}-errors",
    "model": MODEL_ID,
    "endpoint": "/v1/classifications",
    "completion_window": "24h",
    "paused": False,
    "retry_of": None,
    "submitted_by": "photo album",
    "job": _JOB,
}

_RUNNING_BATCH: Final = _BATCH | {
    "status": "in_progress",
    "completed_at": None,
    "eta_seconds": 2.0,
    "output_file_id": None,
    "error_file_id": None,
    "retry_of": "06h0w3m7q2v9c1ds",
    "job": _JOB | {"state": "running", "finished_at": None},
}

_FAILED_BATCH: Final = _BATCH | {
    "status": "failed",
    "in_progress_at": None,
    "completed_at": None,
    "failed_at": _READ,
    "cancelled_at": None,
    "request_counts": {"total": 0, "completed": 0, "failed": 0},
    "rate": None,
    "errors": {"object": "list", "data": [_ERROR]},
    "output_file_id": None,
    "error_file_id": None,
    "job": _FAILED_JOB,
}

_CANCELLED_BATCH: Final = _RUNNING_BATCH | {
    "status": "cancelled",
    "cancelled_at": _ENDED,
    "eta_seconds": None,
}

_TOP: Final = [{"label": "cat", "confidence": 0.98}, {"label": "fox", "confidence": 0.01}]

_RESULT: Final = {
    "custom_id": "cats/1.jpg",
    "name": "cats/1.jpg",
    "index": 0,
    "label": "cat",
    "confidence": 0.98,
    "top": _TOP,
    "error": None,
    "model": MODEL_ID,
}

_IMAGE_ERROR: Final = {"code": "corrupt", "message": "cut short: its end is missing"}

_NO_RESULT: Final = _RESULT | {
    "custom_id": "cats/2.jpg",
    "name": "cats/2.jpg",
    "index": 1,
    "label": None,
    "confidence": None,
    "top": None,
    "error": _IMAGE_ERROR,
}

_NEW_CORRECTION: Final = {"batch_id": BATCH_ID, "index": 0, "label": "fox", "line": 1, "confirms": False}
_CORRECTION: Final = {
    "object": "correction",
    "batch_id": BATCH_ID,
    "index": 0,
    "name": "cats/1.jpg",
    "label": "fox",
    "predicted": "cat",
    "confidence": 0.98,
    "model": MODEL_ID,
    "image_sha256": _SHA256,
    "created_at": _ENDED,
}
_EFFECT: Final = (
    f"{DATASET} has 21 corrections for its next training; with about 179 more, models are judged by a part "
    "of them."
)

_PROBLEM: Final[dict[str, Any]] = {
    "type": "about:blank",
    "title": "Unprocessable Entity",
    "status": 422,
    "detail": "top_k: Input should be less than or equal to 10",
    "code": "invalid",
    "errors": [{"param": "top_k", "detail": "Input should be less than or equal to 10"}],
    "error": {
        "message": "top_k: Input should be less than or equal to 10",
        "type": "invalid_request_error",
        "code": "invalid",
        "param": "top_k",
    },
}

_RUN: Final = {
    "id": RUN_ID,
    "object": "run",
    "status": "done",
    "dataset": DATASET,
    "created_at": _CREATED,
    "started_at": _STARTED,
    "expected_at": _ENDED,
    "finished_at": _ENDED,
    "epochs_done": 12,
    "model": MODEL_ID,
    "accuracy": 0.93,
    "verdict": "promoted: 0.93 on the test set, the champion 0.91",
    "error": None,
}

#: Objects as the API takes or returns them. A second one shows fields that are null in the first.
EXAMPLES: Final[dict[str, list[dict[str, Any]]]] = {
    "BatchOfFile": [{"input_file_id": FILE_ID, **_OPTIONS}],
    "BatchOfUrls": [{"urls": ["https://example.org/cats/1.jpg"], **_OPTIONS}],
    "BatchBelowUrl": [{"source_url": "s3://photos/2026/", **_OPTIONS}],
    "BatchObject": [_BATCH, _RUNNING_BATCH, _FAILED_BATCH, _CANCELLED_BATCH],
    "BatchDeleted": [{"id": BATCH_ID, "object": "batch", "deleted": True}],
    "BatchErrors": [{"object": "list", "data": [_ERROR]}],
    "BatchError": [_ERROR, _ERROR | {"line": None, "param": "urls"}],
    "RequestCounts": [_COUNTS],
    "JobStatus": [_JOB, _FAILED_JOB],
    "FileObject": [
        {
            "id": FILE_ID,
            "object": "file",
            "bytes": 48_213,
            "created_at": _CREATED,
            "filename": "photos.zip",
            "purpose": "batch",
            "status": "processed",
            "sha256": _SHA256,
        }
    ],
    "FileDeleted": [{"id": FILE_ID, "object": "file", "deleted": True}],
    "Result": [_RESULT, _NO_RESULT],
    "ResultClass": _TOP,
    "ResultError": [_IMAGE_ERROR],
    "Classification": [{"id": BATCH_ID, "object": "classification", "model": MODEL_ID, "results": [_RESULT]}],
    "NewLabel": [{"label": "fox"}],
    "NewCorrection": [_NEW_CORRECTION],
    "NewCorrections": [
        {"corrections": [_NEW_CORRECTION]},
        {"corrections": [_NEW_CORRECTION], "undo": True},
    ],
    "CorrectionObject": [_CORRECTION],
    "ChangedCorrection": [_CORRECTION | {"effect": _EFFECT}],
    "ChangedCorrections": [{"object": "list", "data": [_CORRECTION], "effect": _EFFECT}],
    "ModelObject": [
        {
            "id": MODEL_ID,
            "object": "model",
            "created": _CREATED,
            "owned_by": "labelmill",
            "dataset": DATASET,
            "aliases": ["champion"],
            "architecture": "cnn",
            "accuracy": 0.93,
            "classes": ["cat", "fox"],
            "sha256": _SHA256,
            "pinned_at": _CREATED,
        }
    ],
    "HealthObject": [
        {
            "model": MODEL_ID,
            "dataset": DATASET,
            "accuracy": 0.93,
            "live": {"right": 90, "labelled": 100},
            "jobs": 12,
            "images": 24_000,
            "warnings": ["Its confidence has fallen from 0.95 to 0.81."],
            "unknown": None,
        },
        {
            "model": MODEL_ID,
            "dataset": DATASET,
            "accuracy": None,
            "live": {"right": 0, "labelled": 0},
            "jobs": 0,
            "images": 0,
            "warnings": [],
            "unknown": "It has not been evaluated.",
        },
    ],
    "LiveObject": [{"right": 90, "labelled": 100}],
    "PromotionWanted": [{"force": False}],
    "Decision": [{"model": MODEL_ID, "promoted": True, "reason": "0.93 on the test set, the champion 0.91"}],
    "RollbackWanted": [{"dataset": DATASET}],
    "RunWanted": [
        {
            "dataset": DATASET,
            **_TRAINING,
            "seed": 1,
            "force": False,
            "input_file_id": FILE_ID,
            "delete_input": True,
        }
    ],
    "TrainingOptions": [_TRAINING],
    "ScheduleWanted": [
        {"cron": "0 3 * * 0", "after_corrections": 500, "always": False, "training": _TRAINING}
    ],
    "ScheduleObject": [
        {
            "object": "schedule",
            "dataset": DATASET,
            "cron": "0 3 * * 0",
            "after_corrections": 500,
            "always": False,
            "training": _TRAINING,
            "next_at": _ENDED,
            "new_corrections": 12,
            "changed_at": _CREATED,
        }
    ],
    "ReviewWanted": [
        {"dataset": DATASET, "kind": "unsure", "batch_id": BATCH_ID, "limit": 20, "again": False}
    ],
    "ReviewObject": [
        {
            "object": "review",
            "batch_id": BATCH_ID,
            "index": 3,
            "name": "cats/4.jpg",
            "label": "cat",
            "confidence": 0.51,
        }
    ],
    "RunObject": [
        _RUN,
        _RUN
        | {"status": "failed", "model": None, "accuracy": None, "verdict": None, "error": "out of memory"},
    ],
    "DatasetObject": [
        {
            "id": DATASET,
            "object": "dataset",
            "version": 2,
            "classes": ["cat", "fox"],
            "images": 24_000,
            "fingerprint": _SHA256,
            "created_at": _CREATED,
        }
    ],
    "WorkerObject": [
        {
            "name": "host-1 4711",
            "queue": "labelmill",
            "processes": 4,
            "version": "1.0.0",
            "alive": True,
            "seen_at": _ENDED,
            "chunks": 2,
            "run": RUN_ID,
            "problem": "the store cannot be reached",
        }
    ],
    "NewWebhook": [{"url": _WEBHOOK["url"], "events": _WEBHOOK["events"]}],
    "WebhookObject": [_WEBHOOK],
    "WebhookWithSecret": [_WEBHOOK | {"secret": _SECRET}],
    "WebhookSecret": [{"secret": _SECRET}],
    "WebhookDeleted": [{"id": WEBHOOK_ID, "object": "webhook", "deleted": True}],
    "DeliveryStarted": [{"id": _DELIVERY["id"], "object": "webhook.delivery"}],
    "DeliveryObject": [_DELIVERY],
    "Start": [
        {
            "name": "Labelmill",
            "version": "1.0.0",
            "documentation": "/openapi.json",
            "resources": ["/healthz", "/readyz", "/v1/batches", "/v1/files"],
        }
    ],
    "Health": [{"status": "ok"}],
    "Problem": [_PROBLEM],
    "FieldProblem": _PROBLEM["errors"],
    "OpenAIError": [_PROBLEM["error"]],
}

#: The same for parameters, by name in lower case.
PARAMETERS: Final[dict[str, Any]] = {
    "idempotency-key": "monday",
    "if-range": f'"{_SHA256}"',
    "last-event-id": "3-2-1-in_progress",
    "range": "bytes=0-1023",
    "after": BATCH_ID,
    "at_least": 0.5,
    "batch_id": BATCH_ID,
    "below": 0.7,
    "classifications": True,
    "dataset": DATASET,
    "error": "corrupt",
    "errors": True,
    "failed_only": True,
    "file_id": FILE_ID,
    "format": "csv",
    "index": 0,
    "label": "cat",
    "limit": 20,
    "metadata": "album=7",
    "mistakes": True,
    "model": MODEL_ID,
    "model_id": MODEL_ID,
    "name": "cats/*.jpg",
    "order": "desc",
    "purpose": "batch",
    "run_id": RUN_ID,
    "size": "large",
    "spreadsheet": True,
    "state": "running",
    "top_k": 3,
    "truth": "cat",
    "version": 2,
    "wait": 10,
    "webhook_id": WEBHOOK_ID,
}
