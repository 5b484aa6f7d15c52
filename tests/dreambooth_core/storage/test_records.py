"""What records say of themselves."""

from dreambooth_core.storage.records import Weights


def test_a_training_that_was_over_when_it_went_on_took_no_time() -> None:
    weights = Weights(uri="u", digest="d", method="lora", files={}, steps=10, steps_per_second=2.5)
    assert weights.seconds == 4
    # its last attempt found every step taken, and has no pace
    assert weights.model_copy(update={"steps_per_second": 0.0}).seconds == 0
