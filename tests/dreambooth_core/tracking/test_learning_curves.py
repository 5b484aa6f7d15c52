"""Points of learning curves."""

from dreambooth_core.storage.records import LearningCurves, ValidationResult
from dreambooth_core.tracking.learning_curves import (
    curves_of,
    last_steps,
    new_points,
    rates,
    width,
    windows,
)

LOSSES = [[float(step), 10.0 * step] for step in range(10)]


def test_a_point_is_the_mean_of_its_window() -> None:
    assert (width(6), width(399), width(400), width(1000)) == (1, 1, 2, 5)
    whole = windows(LOSSES, 800, with_classes=True, ended=True)
    assert whole == ((4, 1.5, 15.0), (8, 5.5, 55.0), (10, 8.5, 85.0))
    so_far = windows(LOSSES, 800, with_classes=False, ended=False)
    assert so_far == ((4, 1.5, None), (8, 5.5, None))
    assert windows([], 800, with_classes=True, ended=False) == ()


def test_an_interrupted_training_has_the_points_of_an_uninterrupted_one() -> None:
    partial = [windows(LOSSES[:done], 800, with_classes=True, ended=False) for done in range(11)]
    whole = windows(LOSSES, 800, with_classes=True, ended=True)
    assert all(points == whole[: len(points)] for points in partial)


def test_rates_of_groups() -> None:
    groups = [
        {"curve": "unet", "lr": 0.5, "is_text": False},
        {"curve": "text_encoder", "lr": 0.25, "is_text": True, "d": 2.0},
    ]
    assert rates(groups, text_frozen=False) == {"unet": 0.5, "text_encoder": 0.5}
    assert rates(groups, text_frozen=True) == {"unet": 0.5, "text_encoder": 0.0}


def test_empty_curves_are_left_out_and_each_point_is_logged_once() -> None:
    record = LearningCurves(
        losses=((1, 0.5, None), (2, 0.25, None)),
        validations=(
            ValidationResult(step=0, stable_loss=0.75),
            ValidationResult(step=2, stable_loss=0.5),
        ),
        rates={"unet": ((1, 1e-3), (2, 1e-4))},
        stalls=((2, 0.125),),
    )
    curves = curves_of(record)
    assert curves == {
        "loss/instance": [(1, 0.5), (2, 0.25)],
        "validation/stable_loss": [(0, 0.75), (2, 0.5)],
        "learning_rate/unet": [(1, 1e-3), (2, 1e-4)],
        "speed/checkpoint_stall_seconds": [(2, 0.125)],
    }
    logged = {"loss/instance": 1, "validation/stable_loss": 0}
    assert list(new_points(curves, logged)) == [1, 2]
    assert new_points(curves, logged)[1] == {"learning_rate/unet": 1e-3}
    assert new_points(curves, last_steps(logged, curves)) == {}
    later = {"loss/instance": 7, "loss/class": 7}
    after = {**later, "validation/stable_loss": 2, "learning_rate/unet": 2}
    assert last_steps(later, curves) == {**after, "speed/checkpoint_stall_seconds": 2}
