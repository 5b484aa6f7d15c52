"""Derived values of records."""

from dreambooth_core.storage.records import Weights


def test_a_training_whose_last_attempt_took_no_step_took_no_time() -> None:
    weights = Weights(uri="u", digest="d", method="lora", files={}, steps=10, steps_per_second=2.5)
    assert weights.seconds == 4
    # the last attempt took no step and has no speed
    assert weights.model_copy(update={"steps_per_second": 0.0}).seconds == 0
