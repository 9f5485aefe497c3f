"""The pages on models: which of them can be compared, and what the buttons say that change the champion."""

from __future__ import annotations

import httpx

from jobs.ledger import Ledger
from jobs.ledger.api.keys import Role, create_key
from jobs.ledger.learning.models import move_champion, save_evaluation
from jobs.settings import Settings
from jobs.storage.store import Store
from tests.evaluations import made_evaluation
from tests.kerasfile import keras_file
from tests.registering import register_digits
from tests.serving import served_locally

TRUTH = [number % 10 for number in range(100)]


def test_models_are_compared_on_the_same_images(settings: Settings, ledger: Ledger, store: Store) -> None:
    # Given four models, of which the newest and another were evaluated on other images than the other two
    first, champion, strange, new = (register_digits(ledger, store, keras_file(b"%d" % n)) for n in range(4))
    with ledger.transaction() as connection:
        for wrong, (model, data) in enumerate(((first, "a"), (champion, "a"), (strange, "b"), (new, "a"))):
            answers = [(each + (place < wrong)) % 10 for place, each in enumerate(TRUTH)]
            save_evaluation(connection, model.id, data * 64, *made_evaluation(TRUTH, answers))
        move_champion(connection, champion.id, previous_id=None, how="promote")
        _, key = create_key(connection, "person", Role.ADMIN)
    with (
        served_locally(settings) as (_, url),
        httpx.Client(
            base_url=url, headers={"Accept": "text/html"}, timeout=60, follow_redirects=True
        ) as browser,
    ):
        assert browser.post("/sign-in", data={"key": key}).status_code == 200

        # Then the latest two that can be compared are chosen, and there is no champion to go back to
        text = browser.get("/models").text
        assert f'name="first" value="{new.id}" aria-label="Compare {new.id}" required checked>' in text
        assert (
            f'name="second" value="{champion.id}" aria-label="with {champion.id}" required checked>' in text
        )
        assert "/v1/models/rollback" not in text

        # And the differences say whose label is which
        text = browser.get(f"/models/compare?first={new.id}&second={champion.id}").text
        assert 'true <b class="truth">1</b>, first: 2, second: 1' in text
        assert "test image 1<" in text

        # And whoever overrules the gate is told both accuracies
        page = browser.get(f"/models/{new.id}").text
        assert strange.id not in page
        assert (
            f"It gets 97.00\u00a0% of the test images right, the champion {champion.id} 99.00\u00a0%." in page
        )

        # When there is a champion before the present one, then its name is in the question
        with ledger.transaction() as connection:
            move_champion(connection, first.id, previous_id=champion.id, how="promote")
        assert (
            f"Make {champion.id} the champion of mnist again, as it was before?"
            in browser.get("/models").text
        )
