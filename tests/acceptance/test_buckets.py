"""A stack whose store is a bucket: images come over HTTP and from a bucket, and are purged."""

from __future__ import annotations

import io
import shutil
import zipfile
from pathlib import Path

import fsspec
import pytest

from jobs.settings import ENV_PREFIX
from tests.console import Home, agreement, rows, until
from tests.serving import lines_of, make_key, openai_client, served


@pytest.fixture
def home(new_home: Home, s3_bucket: str) -> Home:
    """A home whose store, with the model, was moved into a bucket."""
    fsspec.filesystem("s3").put(f"{new_home.path}/store/", f"{s3_bucket}/mill/", recursive=True)
    shutil.rmtree(new_home.path / "store")
    new_home.extra = {
        ENV_PREFIX + "STORE_URL": f"{s3_bucket}/mill",
        ENV_PREFIX + "REFERENCE_ROOTS": f"{s3_bucket}/scans/",
    }
    return new_home


def test_everything_works_with_buckets(home: Home, s3_bucket: str, few_digits: Path, tmp_path: Path) -> None:
    bucket = fsspec.filesystem("s3")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(few_digits.rglob("*.png")):
            file.write(path, path.relative_to(few_digits))
    with home.started("up", log=tmp_path / "up.log"), served(home, tmp_path / "serve.log") as url:
        # When an archive is uploaded over HTTP
        with openai_client(url, make_key(home)) as client:
            uploaded = client.files.create(file=("digits.zip", archive.getvalue()), purpose="batch")
            assert bucket.cat_file(f"{s3_bucket}/mill/files/{uploaded.id[5:]}") == archive.getvalue()
            batch = client.batches.create(
                input_file_id=uploaded.id, endpoint="/v1/responses", completion_window="24h"
            )
            until(lambda: client.batches.retrieve(batch.id).status == "completed", "the batch has ended")

            # Then each image has its label
            output = client.batches.retrieve(batch.id).output_file_id
            assert output is not None
            lines = lines_of(client.files.content(output).text)
            labels = {line["custom_id"]: line["response"]["body"]["label"] for line in lines}
        assert len(labels) == 50
        assert sum(name[0] == label for name, label in labels.items()) >= 45

        # When the same images are submitted from a bucket, by value and by reference
        bucket.put(f"{few_digits}/", f"{s3_bucket}/scans/", recursive=True)
        prefix = f"{s3_bucket}/scans/"
        for options in ([], ["--by-reference"]):
            job_id = home.ok("submit", prefix, *options, "--watch").split()[-1]
            found = rows(home.ok("predictions", job_id, "--format", "csv"))

            # Then they have the same labels
            assert {row["name"].removeprefix(prefix): row["label"] for row in found} == labels
            assert agreement(found) >= 0.9

    # When everything is purged, then no payload is left in the bucket, and the labels are
    assert len(bucket.find(f"{s3_bucket}/mill/payloads")) == 3
    home.ok("purge", "--payloads", "0")
    bucket.invalidate_cache()
    assert bucket.find(f"{s3_bucket}/mill/payloads") == []
    assert len(rows(home.ok("predictions", job_id, "--format", "csv"))) == 50
    assert len(bucket.find(f"{s3_bucket}/scans")) == 50
