"""The finding about a class noun in a run's validation, and the warning about class images."""

import pytest

from dreambooth_core.config import Config
from dreambooth_core.data.ingest import ingest
from dreambooth_core.evaluation.sanity_checks import noun_warnings
from tests.real_images import palace

BUILTIN = "builtin:efficientnet_lite2"


@pytest.fixture
def photos(tmp_path):
    """Three views of one palace."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(3):
        image = palace()
        image.crop((20 * index, 10 * index, image.width, image.height)).save(
            folder / f"{index}.png"
        )
    return folder


def config_for(folder, noun, identity=BUILTIN):
    return Config.model_validate(
        {
            "name": "test",
            "subject": {"images": folder, "class_noun": noun},
            "model": {"base": "examples/small_world/base", "resolution": 64},
            "evaluation": {"identity": identity},
        }
    )


def noun_findings(config, store):
    findings = ingest(config, store)[0].validation.findings
    return [found for found in findings if found.check == "class noun"]


def test_a_wrong_noun_is_a_soft_finding(photos, file_store):
    (finding,) = noun_findings(config_for(photos, "dog"), file_store)
    assert finding.level == "soft"
    assert finding.measure.startswith("0 of 3 photos show a dog")
    assert "palace" in finding.measure
    # cached findings are those of the same encoder only
    assert noun_findings(config_for(photos, "dog", "examples/x"), file_store) == []


def test_a_right_noun_is_none(photos, file_store):
    assert noun_findings(config_for(photos, "palace"), file_store) == []


def test_class_images_of_another_class_are_a_warning(photos):
    (sentence,) = noun_warnings(config_for(photos, "dog"), [palace()])
    assert "0 of 1 class images of the base show a dog" in sentence
    assert noun_warnings(config_for(photos, "palace"), [palace()]) == ()
    assert noun_warnings(config_for(photos, "dog", "examples/x"), [palace()]) == ()
