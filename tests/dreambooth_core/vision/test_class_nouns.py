"""Class nouns: their labels, and the check by the packaged classifier."""

import pytest

from dreambooth_core.vision.class_nouns import GROUPS, check_noun, labels_of, load_classifier, names
from tests.real_images import palace

BUILTIN = "builtin:efficientnet_lite2"


@pytest.mark.parametrize(
    ("noun", "label"),
    [
        ("dog", "golden retriever"),
        ("Puppy", "pembroke"),
        ("cat", "egyptian cat"),
        ("bird", "american egret"),
        ("car", "jeep"),
        ("shoe", "running shoe"),
        ("plushie", "teddy"),
        ("can", "milk can"),
        ("teapot", "teapot"),
    ],
)
def test_a_noun_has_the_labels_of_its_kinds(noun, label):
    assert any(label in names()[index] for index in labels_of(noun))


@pytest.mark.parametrize(
    ("noun", "label"), [("can", "can opener"), ("dog", "hot dog"), ("cat", "madagascar cat")]
)
def test_a_noun_has_no_label_of_another_thing(noun, label):
    assert any(label in each for each in names())
    assert not any(label in names()[index] for index in labels_of(noun))


@pytest.mark.parametrize("noun", ["toy", "robot", "cartoon", "sks"])
def test_a_noun_may_have_no_label(noun):
    assert labels_of(noun) == frozenset()


def test_all_labels_of_groups_exist():
    assert len(names()) == 1000
    assert all(0 <= index < 1000 for group in GROUPS.values() for index in group)


def test_a_photo_shows_its_noun_and_no_other():
    classifier = load_classifier(BUILTIN)
    right = check_noun(classifier, [palace()], "palace")
    assert right.passed
    assert right.likeliest == "palace"
    wrong = check_noun(classifier, [palace()], "dog")
    assert not wrong.passed
    assert wrong.sentence("photos").startswith("0 of 1 photos show a dog")


def test_without_a_label_or_an_image_there_is_no_result():
    classifier = load_classifier(BUILTIN)
    assert check_noun(classifier, [palace()], "robot") is None
    assert check_noun(classifier, [], "palace") is None


@pytest.mark.parametrize("identity", ["facebook/dino-vits16", "a/folder"])
def test_other_encoders_have_no_classifier(identity):
    assert load_classifier(identity) is None
