"""`/datasets`: the datasets, and for each version its counts, findings and contact sheet."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Query, Request, Response

from jobs.ledger.learning.datasets import get_version, list_versions
from jobs.ledger.learning.models import champions
from jobs.models.dataset import DatasetVersion
from labelmill.client.datasets import LISTED_VERSIONS
from labelmill.reporting.dataset_page import section_values
from labelmill.server.access import SubmitSession
from labelmill.server.datasets import MAX_VERSION, DatasetPath, chosen_images
from labelmill.web.rendering import page

router = APIRouter(prefix="/datasets")

Version = Annotated[int | None, Query(ge=1, le=MAX_VERSION)]


@router.get("")
def show_datasets(request: Request, session: SubmitSession) -> Response:
    """Show the datasets in their latest versions."""
    with session.client.ledger.reading() as connection:
        best = {model.dataset: model for model in champions(connection)}
    return page(request, "datasets.html", datasets=session.client.datasets(), champions=best)


@router.get("/{dataset}")
def show_dataset(
    dataset: DatasetPath, request: Request, session: SubmitSession, version: Version = None
) -> Response:
    """Show a version of a dataset, by default its latest."""
    with session.client.ledger.reading() as connection:
        found = get_version(connection, dataset, version)
        versions = list_versions(connection, dataset, limit=LISTED_VERSIONS)
        best = {model.dataset: model for model in champions(connection)}
    return page(
        request,
        "dataset_page.html",
        **section_values(found, versions),
        latest=versions[0],
        champion=best.get(dataset),
        version_url=_version_url,
    )


@router.get("/{dataset}/sheet")
def show_sheet(
    dataset: DatasetPath, request: Request, session: SubmitSession, version: Version = None
) -> Response:
    """Show some images of each class."""
    client = session.client
    found = client.dataset(dataset, version=version)
    folder = f"/v1/datasets/{quote(dataset)}/versions/{found.version}/classes"
    chosen = chosen_images.of(client.store, found)
    sheets = [(sheet, f"{folder}/{sheet.label}/sheet") for sheet in chosen]
    return page(request, "dataset_sheet_page.html", version=found, sheets=sheets, version_url=_version_url)


def _version_url(version: DatasetVersion) -> str:
    return f"/datasets/{quote(version.dataset)}?version={version.version}"
