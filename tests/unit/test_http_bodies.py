"""What a body may cost that is wrong a hundred thousand times."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from labelmill.server.schemas import NewBatch


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"urls": [1] * 100_000}, "at most 10,000 addresses"),
        ({"input_file_id": "x"} | dict.fromkeys(map(str, range(100_000)), 1), "'0' and others are no fields"),
        ({"input_file_id": "x", "metadata": dict.fromkeys(map(str, range(100_000)), 1)}, "at most 16 pairs"),
    ],
    ids=["urls", "fields", "metadata"],
)
def test_it_is_one_error(body: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason) as refused:
        NewBatch.model_validate(body)
    assert refused.value.error_count() == 1
