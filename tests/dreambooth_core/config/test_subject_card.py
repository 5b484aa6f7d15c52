"""Subject cards."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from dreambooth_core.config import Config
from dreambooth_core.config.subject_card import SubjectCard
from dreambooth_core.errors import ConfigError
from dreambooth_core.storage.records import config_digest


def test_identity_has_all_phrases_of_the_subject_itself() -> None:
    card = SubjectCard(
        class_noun="mug", materials=("stoneware",), colours=("blue",), must_keep=("white star",)
    )
    assert card.identity == ("blue", "stoneware", "white star")


@pytest.mark.parametrize("words", ["{subject}", "<|user|>", "", "a" * 121, "two\nlines"])
def test_markup_and_long_texts_are_refused(words: str) -> None:
    with pytest.raises(ValidationError):
        SubjectCard(class_noun=words)


def test_at_most_twelve_details() -> None:
    with pytest.raises(ValidationError, match="12"):
        SubjectCard(class_noun="mug", colours=tuple(f"colour {n}" for n in range(13)))


def test_requirements_are_questions_with_their_right_answer() -> None:
    card = SubjectCard(class_noun="mug", must_keep=("a white star",), must_not=("a lid",))
    assert card.checklist == (
        ("Does the mug in the image have this: a white star?", True),
        ("Does the image show this: a lid?", False),
    )


@pytest.fixture
def card_file(tmp_path: Path) -> Path:
    path = tmp_path / "card.yaml"
    path.write_text("class_noun: mug\ncolours: [blue handle]\n", encoding="utf-8")
    return path


def test_a_config_takes_the_class_noun_of_its_card(card_file: Path) -> None:
    config = Config.model_validate({"subject": {"images": "x", "card": str(card_file)}})
    assert config.subject.class_noun == "mug"
    assert config.subject.card == SubjectCard(class_noun="mug", colours=("blue handle",))
    own = {"images": "x", "card": str(card_file), "class_noun": "cup"}
    assert Config.model_validate({"subject": own}).subject.class_noun == "cup"


def test_a_config_holds_the_content_of_its_card_and_not_the_path(card_file: Path) -> None:
    config = Config.model_validate({"subject": {"images": "x", "card": str(card_file)}})
    before = config_digest(config)
    card_file.write_text("class_noun: mug\ncolours: [red handle]\n", encoding="utf-8")
    assert Config.model_validate(config.model_dump(mode="json")) == config
    edited = Config.model_validate({"subject": {"images": "x", "card": str(card_file)}})
    assert config_digest(edited) != before
    card_file.unlink()
    assert Config.model_validate_json(config.model_dump_json()) == config


def test_without_a_card_documents_and_digests_are_those_without_the_option() -> None:
    config = Config.model_validate({"subject": {"images": "x", "class_noun": "mug"}})
    assert "card" not in config.model_dump(mode="json")["subject"]
    empty = {"images": "x", "class_noun": "mug", "card": None}
    assert config_digest(Config.model_validate({"subject": empty})) == config_digest(config)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("name: Aurora", "class_noun: is missing"),
        ("class_noun: mug\ncolour: [red]", "did you mean colours"),
        ("class_noun: mug\ncolours: ['{subject}']", "colours.0: must match"),
        ("- mug", "must hold a mapping"),
    ],
)
def test_a_wrong_card_is_one_sentence_with_its_file(
    card_file: Path, text: str, sentence: str
) -> None:
    card_file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=sentence) as caught:
        Config.model_validate({"subject": {"images": "x", "card": str(card_file)}})
    assert "card.yaml" in str(caught.value)


def test_a_missing_card_and_a_missing_class_noun_are_errors() -> None:
    with pytest.raises(ConfigError, match="no subject card at"):
        Config.model_validate({"subject": {"images": "x", "card": "none.yaml"}})
    with pytest.raises(ValidationError, match=r"subject\.class_noun"):
        Config.model_validate({"subject": {"images": "x"}})
    with pytest.raises(ValidationError, match=r"subject\.card"):
        Config.model_validate({"subject": {"images": "x", "card": 5}})
