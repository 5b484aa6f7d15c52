"""Contract of all detectors."""

import pytest

from dreambooth_core import plugins
from dreambooth_core.config import Detector
from dreambooth_core.errors import ModelError
from dreambooth_core.vision.detectors import load_detector

NAMES = plugins.names("dreambooth_core.vision.detectors")


def test_the_expected_kinds_exist():
    assert {"segmenter", "detector"} <= set(NAMES)


def test_without_a_kind_there_is_no_detector():
    assert load_detector(Detector()) is None


@pytest.mark.parametrize("kind", NAMES)
def test_an_empty_folder_is_a_model_error(kind, tmp_path):
    with pytest.raises(ModelError, match=f"no {kind} at .*: set evaluation.detector.model"):
        load_detector(Detector(kind=kind, model=str(tmp_path)))
