"""Extraction of an answer's JSON from responses."""

import pytest
from pydantic import BaseModel, Field

from dreambooth_core.vision.language.answers import parsed, schema_instruction


class Opinion(BaseModel):
    rationale: str
    score: int = Field(ge=0, le=4)


RIGHT = '{"rationale": "the same {curly} ears", "score": 3}'


@pytest.mark.parametrize(
    "text",
    [
        RIGHT,
        f"Here you are:\n```json\n{RIGHT}\n```\nAnything else?",
        f'<think>maybe {{"rationale": "no", "score": 0}}</think>{RIGHT}',
        f'a thought that began before, {{"rationale": "no", "score": 0}}</think>\n{RIGHT}',
        f'{{"rationale": "a first thought", "score": 1}} No, wait: {RIGHT}',
        f'{RIGHT} which is to say {{"score": "three"}}',
        f"<|begin_of_box|>{RIGHT}<|end_of_box|>",
        f"{{not json}} {RIGHT} {{",
    ],
)
def test_the_answer_is_found(text):
    assert parsed(text, Opinion) == Opinion(rationale="the same {curly} ears", score=3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no JSON object"),
        ("It is a 3.", "no JSON object"),
        ("[3]", "no JSON object"),
        (RIGHT[:-1], "no JSON object"),
        (f"<think>{RIGHT}", "no JSON object"),
        ('{"rationale": "x", "score": 5}', "at score: .*less than or equal to 4"),
        ('{"score": 3}', "at rationale: Field required"),
        ('{"rationale": "x", "score": 9} {"rationale": 1, "score": 3}', "at rationale"),
        ('{"answer": {"rationale": "x", "score": 3}}', "at rationale: Field required"),
    ],
)
def test_an_invalid_answer_is_an_error_with_its_reason(text, words):
    with pytest.raises(ValueError, match=words):
        parsed(text, Opinion)


def test_the_instruction_has_the_schema_in_the_order_of_its_fields():
    sentence = schema_instruction(Opinion)
    assert sentence.index('"rationale"') < sentence.index('"score"')
    assert '"maximum":4' in sentence
