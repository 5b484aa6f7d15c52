"""Models that MLflow logged with an earlier version import their classes by the old name."""

from dreambooth_core import serving
from dreambooth_core.registry import serving as moved


def test_the_old_name_gives_the_same_classes() -> None:
    assert serving.ServedModelPointer is moved.ServedModelPointer
    assert serving.ServedModel is moved.ServedModel
