"""Contract of all detectors."""

import pytest

from dreambooth_core import plugins
from dreambooth_core.config import Detector
from dreambooth_core.errors import ConfigError, ModelError
from dreambooth_core.vision.detectors import load_detector, packaged_weights

NAMES = plugins.names("dreambooth_core.vision.detectors")
PACKAGED = [name for name in NAMES if packaged_weights(name) is not None]


def test_the_expected_kinds_exist():
    assert {"segmenter", "detector", "saliency"} <= set(NAMES)


def test_without_a_kind_there_is_no_detector():
    assert load_detector(Detector()) is None


@pytest.mark.parametrize("kind", sorted(set(NAMES) - set(PACKAGED)))
def test_an_empty_folder_is_a_model_error(kind, tmp_path):
    with pytest.raises(ModelError, match=f"no {kind} at .*: set evaluation.detector.model"):
        load_detector(Detector(kind=kind, model=str(tmp_path)))


@pytest.mark.parametrize("kind", PACKAGED)
def test_a_packaged_model_takes_no_folder(kind, tmp_path):
    assert load_detector(Detector(kind=kind)) is not None
    with pytest.raises(ConfigError, match="leave evaluation"):
        load_detector(Detector(kind=kind, model=str(tmp_path)))
