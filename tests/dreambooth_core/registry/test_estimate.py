"""What a run may cost, at the pace of the model in service."""

import pytest

from dreambooth_core.data import dataset
from dreambooth_core.registry import promotion
from dreambooth_core.registry.estimate import estimate_cost
from dreambooth_core.registry.provenance import read_provenance, run_inputs
from dreambooth_core.registry.register import alias_log_of
from dreambooth_core.storage.costs import store_cost
from dreambooth_core.storage.records import Cost
from dreambooth_core.tracking import mlflow as tracking
from tests.registered_by_hand import verdict, version_by_hand


def test_nobody_knows_what_a_first_run_takes(tracked_config, file_store):
    photos = dataset.collect(file_store, tracked_config)[0]
    found = estimate_cost(tracked_config, file_store, photos)
    assert (found.photos, found.class_images, found.stored_class_images) == (4, 2, 0)
    assert (found.trained, found.evaluated_images) == (None, (2 + 1) * 2 + 2)
    assert (found.priors_seconds, found.training_seconds, found.evaluation_seconds) == (None,) * 3


def test_the_champion_lends_its_pace(tracked_config, file_store):
    client = tracking.open_client(tracked_config)
    version = version_by_hand(client, tracked_config, file_store, "a")
    promotion.apply_verdict(tracked_config, file_store, version, verdict("1", "promote", "base"))
    log = alias_log_of(tracked_config, file_store)
    made = run_inputs(file_store, read_provenance(log, version.version))
    # two class images, and two of the model and two class images of its own that were measured
    store_cost(file_store, made.classes, Cost(seconds=3.0))
    store_cost(file_store, made.scores, Cost(seconds=10.0))

    photos = dataset.collect(file_store, tracked_config)[0]
    found = estimate_cost(tracked_config, file_store, photos)
    assert found.priors_seconds == pytest.approx(3.0 / 2 * 2)
    # by hand, it trained two steps a second
    assert found.training_seconds == pytest.approx(tracked_config.train.steps / 2)
    assert found.evaluation_seconds == pytest.approx(10.0 / 4 * 8)
