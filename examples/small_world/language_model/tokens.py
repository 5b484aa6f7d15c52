"""Tokenizer of the small vision-language model: whole sentences of its instructions are single tokens.

A unigram model over bytes, words and the sentences of the questions in `questions`; other texts are
words and bytes. Short prompts make training and answers fast on a CPU.
"""

import random
import re
from collections.abc import Iterable
from typing import Any

from examples.small_world.language_model.network import SPECIAL, VOCABULARY
from examples.small_world.language_model.pictures import Picture, card, pair, photo
from examples.small_world.language_model.questions import (
    LABELS,
    OF_CARD,
    OF_MORE,
    OF_PAIR,
    OF_PHOTO,
    OF_TWO,
    plural,
    thousandths,
)
from examples.small_world.render import SIZE
from examples.small_world.shapes import CLASSES
from examples.small_world.world import ACCESSORIES, BACKGROUNDS, COLORS, PATTERNS

TEMPLATE = """[gMASK]<sop>
{%- for message in messages %}<|{{ message.role }}|>
{% if message.role == 'assistant' %}<think></think>{% endif %}
{%- if message.content is string %}{{ message.content }}{% else %}
{%- for part in message.content %}
{%- if part.type == 'image' %}<|begin_of_image|><|image|><|end_of_image|>{% else %}{{ part.text }}{% endif %}
{%- endfor %}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|assistant|>
<think></think>{% endif %}"""
COORDINATES = tuple(str(thousandths(edge)) for edge in range(SIZE + 1))
ANSWER_PARTS = re.compile(r'(?:"?,? ?|\{)"\w+": (?:\{|\[\]|\[?"?)|"?[\]}]+| ?\w+|", "|.', re.DOTALL)
SAMPLES = 120
"""Sampled questions of each kind, whose common sentences and words become tokens."""
LEAST = {"sentence": 5, "word": 2}
"""Occurrences in the samples below which a sentence or word has no token of its own."""


def make_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)

    def as_bytes(text: str) -> str:
        return "".join(part for part, _ in byte_level.pre_tokenize_str(text))

    words, sentences = _sampled_pieces()
    scored = [(token, -100.0) for token in SPECIAL]
    scored += [(letter, -10.0) for letter in sorted(pre_tokenizers.ByteLevel.alphabet())]
    known = {piece for piece, _ in scored}
    for pieces, score in ((words, -3.0), (sentences, -1.0)):
        new = [piece for piece in map(as_bytes, pieces) if piece not in known]
        scored += [(piece, score) for piece in dict.fromkeys(new)]
        known |= {*new}
    if len(scored) > VOCABULARY:
        raise ValueError(f"{len(scored)} tokens, at most {VOCABULARY}: raise VOCABULARY")
    made = Tokenizer(models.Unigram(scored, unk_id=0))
    made.pre_tokenizer = byte_level
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token=SPECIAL[0], pad_token=SPECIAL[0], chat_template=TEMPLATE
    )


def _sampled_pieces() -> tuple[list[str], list[str]]:
    """(words, sentences) of questions and answers, sorted."""
    questions, answers = _samples()
    words = {*COORDINATES, *(str(digit) for digit in range(10)), *"ABCD", "\n", "\n\n", ": "}
    for name in (*CLASSES, *COLORS, *PATTERNS, *ACCESSORIES, *BACKGROUNDS.values(), "sks"):
        words |= {name, f" {name}"} | {f" {word}" for word in name.split()}
    words |= {f"{space}{plural(noun)}" for noun in CLASSES for space in ("", " ")}
    words |= {f"{label} {number}:" for label in {*LABELS.values()} for number in range(1, 9)}
    counts: dict[str, int] = {}
    for answer in answers:
        for part in ANSWER_PARTS.findall(answer):
            counts[part] = counts.get(part, 0) + 1
    words |= {part for part, count in counts.items() if count >= LEAST["word"]}
    return sorted(words), sorted(_sentences(questions))


def _sentences(questions: Iterable[str]) -> set[str]:
    """Parts of questions without slots: sentences, list items and fields of JSON schemas."""
    counts: dict[str, int] = {}
    names = sorted(
        {*CLASSES, *map(plural, CLASSES), *COLORS, *BACKGROUNDS.values()}, key=len, reverse=True
    )
    slots = re.compile("|".join(rf"(?<![a-z]){re.escape(name)}(?![a-z])" for name in names))
    for text in questions:
        for part in re.split(r"(?<=[.?:;\n] )|(?<=\n)|(?<=\},)", text):
            for fixed in slots.split(part):
                counts[fixed] = counts.get(fixed, 0) + 1
    return {part for part, count in counts.items() if count >= LEAST["sentence"] and len(part) > 1}


def _samples() -> tuple[list[str], list[str]]:
    rng = random.Random("tokens")
    pictures: list[Picture] = [photo(rng) for _ in range(12)]
    others = {1: [pair(rng) for _ in range(12)], 2: [card(rng) for _ in range(12)]}
    questions, answers = [], []
    for number, asked in enumerate((OF_PHOTO, OF_PAIR, OF_CARD, OF_TWO, OF_MORE)):
        for ask in asked:
            for _ in range(SAMPLES):
                shown = rng.sample(others.get(number, pictures), max(1, number - 1))
                for one in ask(rng, shown):
                    questions.append(one.question)
                    answers.append(one.answer)
    return questions, answers
