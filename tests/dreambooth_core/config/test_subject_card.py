"""Subject cards."""

import pytest
from pydantic import ValidationError

from dreambooth_core.config.subject_card import SubjectCard


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
