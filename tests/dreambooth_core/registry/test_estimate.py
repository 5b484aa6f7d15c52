"""Cost estimate of a run, at the speed of the champion's run."""

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


def test_a_first_run_has_no_estimate(tracked_config, file_store):
    photos = dataset.collect(file_store, tracked_config)[0]
    estimate = estimate_cost(tracked_config, file_store, photos)
    assert (estimate.photos, estimate.class_images, estimate.stored_class_images) == (4, 2, 0)
    assert (estimate.trained, estimate.evaluated_images) == (None, (2 + 1) * 2 + 2)
    assert (estimate.priors_seconds, estimate.training_seconds, estimate.evaluation_seconds) == (
        None,
    ) * 3


def test_the_champions_speed_gives_the_estimate(tracked_config, file_store):
    client = tracking.open_client(tracked_config)
    version = version_by_hand(client, tracked_config, file_store, "a")
    promotion.apply_verdict(tracked_config, file_store, version, verdict("1", "promote", "base"))
    log = alias_log_of(tracked_config, file_store)
    inputs = run_inputs(file_store, read_provenance(log, version.version))
    # two class images; two samples and two class samples of the model were evaluated
    store_cost(file_store, inputs.classes, Cost(seconds=3.0))
    store_cost(file_store, inputs.scores, Cost(seconds=10.0))

    photos = dataset.collect(file_store, tracked_config)[0]
    estimate = estimate_cost(tracked_config, file_store, photos)
    assert estimate.priors_seconds == pytest.approx(3.0 / 2 * 2)
    # the stored weights were trained at two steps per second
    assert estimate.training_seconds == pytest.approx(tracked_config.train.steps / 2)
    assert estimate.evaluation_seconds == pytest.approx(10.0 / 4 * 8)
