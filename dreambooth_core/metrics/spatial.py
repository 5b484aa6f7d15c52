"""Spatial relations and counts that a prompt states, and their check by boxes.

Grammar, on the prompt without the identifier token, case ignored:

    relation = subject words [to|on] [the] PHRASE anchor      "a dog sitting to the left of a red car"
    count    = NUMBER [adjectives] plural                     "two small dogs", "3 cats"

PHRASE is one of `RELATIONS`. The subject of the first relation is the class noun if it precedes the
phrase, else the last noun phrase before it; that of a later one is the last noun phrase since the
relation before, else the same subject again. The anchor ends at a comma, at a word of `STOPS`, or at the
end. Relations that boxes cannot decide (in, on, behind, in front of, under water) are not recognised.

The geometry is that of GenEval (Ghosh et al. 2023, arXiv:2310.11513, `evaluate_images.py`): centres are
compared, the distance that counts is what exceeds a tenth of the two boxes' sizes, and the direction
must be within 60 degrees of the axis. "On top of" and "next to" are not in GenEval; their rules are ours.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from dreambooth_core.vision.language.boxes import Box

RULES_VERSION = 1
"""Incremented when the same prompt and boxes get another value."""
THRESHOLD = 0.1
"""GenEval's `position_threshold`: distances below this share of the two boxes' sizes do not count."""
NEARNESS = 1.0
"""Largest gap between two neighbours, relative to the wider box."""

Relation = Literal["left of", "right of", "above", "below", "on top of", "next to"]
RELATIONS: Mapping[str, Relation] = {
    "left of": "left of",
    "left side of": "left of",
    "right of": "right of",
    "right side of": "right of",
    "on top of": "on top of",
    "above": "above",
    "below": "below",
    "beneath": "below",
    "underneath": "below",
    "under": "below",
    "next to": "next to",
    "beside": "next to",
}
NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
PLURALS = {
    "men": "man",
    "women": "woman",
    "people": "person",
    "children": "child",
    "mice": "mouse",
    "geese": "goose",
    "feet": "foot",
    "teeth": "tooth",
    "wolves": "wolf",
    "leaves": "leaf",
    "knives": "knife",
    "buses": "bus",
    "shoes": "shoe",
    "sheep": "sheep",
    "fish": "fish",
    "deer": "deer",
}
ARTICLES = ("a", "an", "the", "some", "another")
VERBS = ("is", "are", "was", "were", "placed", "seen", "located", "stands", "sits", "lies")
# fmt: off
STOPS = frozenset({
    "a", "an", "the", "in", "on", "at", "with", "and", "or", "but", "under", "over", "of", "near", "by",
    "during", "while", "that", "which", "from", "next", "above", "below", "beside", "beneath", "behind",
    "inside", "into", "onto", "against", "around", "through", "between", "to", "as", "is", "are", "was",
    "were", "its", "his", "her", "their", "it", "them", "him", "each", "one", "photo", "picture", "image",
    "painting",
})
"""Words that end a noun phrase."""
SURROUNDINGS = frozenset({
    "water", "sea", "ocean", "sky", "sun", "stars", "moon", "moonlight", "rain", "snow", "clouds",
    "rainbow", "construction", "arrest",
})
"""What something can be under or above without a box of its own: "under water", "under the stars"."""
# fmt: on
_WORD = r"[\w'-]+"
_PHRASES = "|".join(sorted(map(re.escape, RELATIONS), key=len, reverse=True))
_RELATION = re.compile(rf"\b(?:(?:to|on|at) (?:the )?)?({_PHRASES})\b")
_COUNT = re.compile(rf"\b({'|'.join(NUMBERS)}|[2-9]|10) (?=((?:{_WORD} ?){{1,4}}))")


@dataclass(frozen=True)
class Placement:
    """A stated relation: `subject` is `relation` `anchor`."""

    subject: str
    relation: Relation
    anchor: str

    @property
    def nouns(self) -> tuple[str, ...]:
        """The nouns to locate."""
        return (self.subject, self.anchor)


@dataclass(frozen=True)
class Count:
    """A stated number of things."""

    noun: str
    """Singular."""
    number: int

    @property
    def nouns(self) -> tuple[str, ...]:
        return (self.noun,)


Statement = Placement | Count


def statements(prompt: str, class_noun: str) -> tuple[Statement, ...]:
    """The relations and counts that a prompt without the identifier token states, in its order."""
    text, noun = " ".join(prompt.lower().split()), class_noun.lower()
    return (*_placements(text, noun), *_counts(text, noun))


def holds(statement: Statement, boxes: Mapping[str, Sequence[Box]], aspect: float = 1.0) -> bool:
    """Whether the boxes of the statement's nouns satisfy it; `aspect` is the image's width / height.

    The largest box of subject and anchor counts; false if either has none. A count must be exact.
    """
    if isinstance(statement, Count):
        return len(boxes[statement.noun]) == statement.number
    subject, anchor = boxes[statement.subject], boxes[statement.anchor]
    if not subject or not anchor:
        return False
    one, other = (_stretched(max(each, key=_area), aspect) for each in (subject, anchor))
    if statement.relation == "on top of":
        return is_on_top(one, other)
    if statement.relation == "next to":
        return is_next_to(one, other)
    return statement.relation in directions(one, other)


def directions(one: Box, other: Box) -> frozenset[str]:
    """Where `one` is relative to `other`: left of or right of, above or below; GenEval's rule.

    Empty when the boxes overlap so much that no distance is left.
    """
    dx, dy = _centre(one)[0] - _centre(other)[0], _centre(one)[1] - _centre(other)[1]
    length = math.hypot(dx, dy)
    if length == 0:
        return frozenset()
    x = _beyond(dx, THRESHOLD * (_width(one) + _width(other))) / length
    y = _beyond(dy, THRESHOLD * (_height(one) + _height(other))) / length
    found = {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}
    return frozenset(name for name, true in found.items() if true)


def is_on_top(one: Box, other: Box) -> bool:
    """Whether `one` stands on `other`: its centre is within the other's width, and its lower edge from the
    other's upper edge down to a tenth of both heights above the other's lower edge.

    Holds for a thing on a table, seen from the side, and on a rug that surrounds it; not under a table.
    """
    slack = THRESHOLD * (_height(one) + _height(other))
    across = other.left <= _centre(one)[0] <= other.right
    return across and other.top - slack <= one.bottom <= other.bottom - slack


def is_next_to(one: Box, other: Box) -> bool:
    """Whether one is left or right of the other with a gap of at most `NEARNESS` times the wider box."""
    gap = max(one.left, other.left) - min(one.right, other.right)
    near = gap <= NEARNESS * max(_width(one), _width(other))
    return near and bool(directions(one, other) & {"left of", "right of"})


def _placements(text: str, noun: str) -> Iterator[Placement]:
    subject, end = "", 0
    for match in _RELATION.finditer(text):
        before, anchor = text[end : match.start()], _first_phrase(text[match.end() :])
        if not end and re.search(rf"\b{re.escape(noun)}s?\b", before):
            subject = noun
        else:
            subject = _last_phrase(before) or subject
        end = match.end()
        if not subject or not anchor or anchor == subject:
            continue
        if match[1] == "on top of" or anchor.split()[-1] not in SURROUNDINGS:
            yield Placement(subject, RELATIONS[match[1]], anchor)


def _counts(text: str, noun: str) -> Iterator[Count]:
    for match in _COUNT.finditer(text):
        number = NUMBERS.index(match[1]) + 2 if match[1] in NUMBERS else int(match[1])
        thing = _counted(_until_stop(match[2].split()), noun)
        if thing:
            yield Count(thing, number)


def _counted(words: Sequence[str], noun: str) -> str:
    """The singular noun phrase up to the first plural or the class noun; empty without one."""
    for end, word in enumerate(words, 1):
        phrase = " ".join(words[:end])
        if phrase == noun or phrase.endswith(f" {noun}"):
            return phrase
        if (single := singular(word)) is not None:
            return " ".join([*words[: end - 1], single])
    return ""


def singular(word: str) -> str | None:
    """The singular of an English plural; None for a word that is not recognised as one."""
    if word in PLURALS:
        return PLURALS[word]
    if len(word) < 3 or not word.endswith("s") or word.endswith(("ss", "us", "is", "'s")):
        return None
    if word.endswith("ies") and len(word) > 4:
        return f"{word[:-3]}y"
    if word.endswith(("sses", "xes", "ches", "shes", "oes")):
        return word[:-2]
    return word[:-1]


def _first_phrase(text: str) -> str:
    """The noun phrase at the start, without its article or number; empty without one."""
    words = re.findall(rf"{_WORD}|[,.;:]", text)
    while words and words[0] in ARTICLES:
        words = words[1:]
    return _without_number(_until_stop(words))


def _last_phrase(text: str) -> str:
    """The noun phrase at the end, back to an article or a stop word, without verbs; empty without one."""
    words = re.findall(rf"{_WORD}|[,.;:]", text)
    while words and (words[-1].endswith("ing") or words[-1] in VERBS):
        words = words[:-1]
    starts = [place for place, word in enumerate(words) if _ends_phrase(word)]
    return _without_number(words[starts[-1] + 1 :] if starts else words)


def _without_number(words: Sequence[str]) -> str:
    """A noun phrase; "two cats" as "cat", because every one of them is located."""
    if words and (words[0] in NUMBERS or words[0].isdigit()):
        return _counted(words[1:], "") or " ".join(words[1:])
    return " ".join(words)


def _ends_phrase(word: str) -> bool:
    return word in STOPS or not word[0].isalnum()


def _until_stop(words: Sequence[str]) -> list[str]:
    ends = (place for place, word in enumerate(words) if _ends_phrase(word))
    return list(words[: next(ends, len(words))])


def _stretched(box: Box, aspect: float) -> Box:
    """With x in the unit of y, so that angles are those of the image."""
    return Box(box.left * aspect, box.top, box.right * aspect, box.bottom)


def _area(box: Box) -> float:
    return _width(box) * _height(box)


def _centre(box: Box) -> tuple[float, float]:
    return (box.left + box.right) / 2, (box.top + box.bottom) / 2


def _width(box: Box) -> float:
    return box.right - box.left


def _height(box: Box) -> float:
    return box.bottom - box.top


def _beyond(distance: float, threshold: float) -> float:
    """What exceeds the threshold, with the distance's sign."""
    return math.copysign(max(abs(distance) - threshold, 0.0), distance)
