"""Questions to the small vision-language model with their true answers: the project's own templates.

An answer that compares or judges begins with a description of what the images show.
"""

import json
import random
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel

from dreambooth_core.data import captioning
from dreambooth_core.data.captioning import Leaks, Scene
from dreambooth_core.metrics.measures import judged_prompt, judged_subject
from dreambooth_core.metrics.vlm_judge import JudgeAnswer
from dreambooth_core.vision.language.answers import schema_instruction
from dreambooth_core.vision.language.boxes import boxes_instruction
from dreambooth_core.vision.language.messages import quoted
from dreambooth_core.vision_checks.questions import (
    CARD,
    CHECKLIST,
    FIRST,
    LATER,
    NOUN,
    OVERLAID,
    PROMPTS,
    SAME,
    SHOWN,
    VISIBLE,
    CardAnswer,
    ClassNoun,
    FrameVerdict,
    OddOnes,
    Overlays,
    Prompts,
    Remark,
    Visibility,
    YesNo,
)
from examples.small_world.language_model.pictures import Picture, Shown
from examples.small_world.render import SIZE
from examples.small_world.shapes import CLASSES
from examples.small_world.world import (
    ACCESSORIES,
    BACKGROUNDS,
    COLORS,
    Identity,
)
from examples.small_world.world import Scene as View

DESCRIBE = "Describe the image: the subject, its colour and pattern, what it wears, and the place."
COUNT = "How many {nouns} are in the image?"
COLOUR = "And what is the colour of the {noun}?"
PLACE = "And where is the {noun}?"
IDENTIFIER = "sks"
CHOICES = "Choose one:\n{lines}\nAnswer with its letter and nothing else."


class Description(BaseModel):
    """Contents of an image of the small world."""

    class_noun: str
    colour: str
    pattern: str
    accessory: str
    background: str


class Count(BaseModel):
    """Number of things in an image."""

    count: int


class Word(BaseModel):
    """An answer of a few words."""

    answer: str


class PhrasesOfCaption(Leaks):
    """Phrases of this caption, which describe the subject itself."""


class Turn(NamedTuple):
    """A question and its true answer."""

    question: str
    answer: str
    follows: bool = False
    """In one conversation with the turn before."""
    box: bool = False
    """The answer has coordinates."""


Asked = Callable[[random.Random, Sequence[Picture]], list[Turn]]


def turn(text: str, schema: type[BaseModel], answer: dict[str, Any], follows: bool = False) -> Turn:
    return Turn(f"{text}\n\n{schema_instruction(schema)}", json.dumps(answer), follows)


def looks(identity: Identity) -> str:
    """`red and blue striped dog`"""
    if identity.pattern == "plain":
        return f"{identity.color.name} {identity.class_noun}"
    both = f"{identity.color.name} and {identity.second.name}"
    return f"{both} {identity.pattern} {identity.class_noun}"


def plural(noun: str) -> str:
    return {"fish": "fish", "butterfly": "butterflies"}.get(noun, f"{noun}s")


def contents(picture: Picture) -> str:
    """`a red dog wearing a blue hat on the beach`"""
    assert picture.scene is not None
    things = " and ".join(f"a {looks(shown.identity)}" for shown in picture.subjects)
    return f"{things}{worn(picture.scene, ' wearing a ')} {BACKGROUNDS[picture.scene.background]}"


def worn(scene: View, before: str) -> str:
    """The accessory after some words; empty without one."""
    if scene.accessory is None:
        return ""
    return f"{before}{scene.accessory_color} {scene.accessory}"


# one image of one subject


def ask_scene(rng: random.Random, pictures: Sequence[Picture]) -> list[Turn]:
    noun, scene = _only(pictures).class_noun, pictures[0].scene
    assert scene is not None
    words = {"noun": noun, "own": captioning.OWN, "words": captioning.MAX_WORDS}
    text = f"{BACKGROUNDS[scene.background]}{worn(scene, ', wearing a ')}"
    return [turn(captioning.SCENE.format(**words), Scene, {"scene": text})]


def ask_leaks(rng: random.Random, pictures: Sequence[Picture]) -> list[Turn]:
    """Captions of the shape that `caption_photo` writes, half of them with a leak."""
    identity, scene = _only(pictures), pictures[0].scene
    assert scene is not None
    noun, leaks = identity.class_noun, []
    words = [f"a photo of {IDENTIFIER} {noun}"]
    if rng.random() < 0.5:
        leaks = [identity.color.name]
        if identity.pattern != "plain" and rng.random() < 0.5:
            leaks = [f"{identity.color.name} and {identity.second.name} {identity.pattern}"]
        words = [rng.choice((f"a {leaks[0]} {IDENTIFIER} {noun}", f"{words[0]}, {leaks[0]}"))]
    words.append(BACKGROUNDS[scene.background] + worn(scene, ", wearing a "))
    caption = quoted(", ".join(words))
    text = captioning.LEAKS.format(
        caption=caption, identifier=IDENTIFIER, noun=noun, own=captioning.OWN
    )
    reason = f"{leaks[0]} describes the {noun}" if leaks else "only the scene is described"
    return [turn(text, PhrasesOfCaption, {"reason": reason, "phrases": leaks})]


def ask_description(rng: random.Random, pictures: Sequence[Picture]) -> list[Turn]:
    """A description, and in the same conversation a question without the image."""
    identity, scene = _only(pictures), pictures[0].scene
    assert scene is not None
    answer = {
        "class_noun": identity.class_noun,
        "colour": identity.color.name,
        "pattern": identity.pattern,
        "accessory": worn(scene, "") or "none",
        "background": BACKGROUNDS[scene.background],
    }
    turns = [turn(DESCRIBE, Description, answer)]
    later = {COLOUR: "colour", PLACE: "background"}
    for text, key in later.items():
        if rng.random() < 0.2:
            asked = text.format(noun=identity.class_noun)
            return [*turns, turn(asked, Word, {"answer": answer[key]}, follows=True)]
    return turns


def ask_shown(rng: random.Random, pictures: Sequence[Picture]) -> list[Turn]:
    """The second opinion on one photo: three questions in one conversation."""
    noun = _only(pictures).class_noun
    asked = noun if rng.random() < 0.6 else rng.choice(list(CLASSES))
    reason = f"it shows {contents(pictures[0])}"
    answer = {"reason": reason, "answer": asked == noun}
    turns = [turn(SHOWN.format(noun=asked), Remark, answer)]
    if asked != noun or rng.random() < 0.5:
        return turns
    flaw = pictures[0].flaw
    hidden, cut = _remark(flaw == "hidden", "covered"), _remark(flaw == "cut_off", "cut")
    seen = {"hidden": hidden, "cut_off": cut}
    turns.append(turn(VISIBLE.format(noun=noun), Visibility, seen, follows=True))
    overlaid = {
        "watermark": _remark(flaw == "watermark", "a mark"),
        "text": _remark(flaw == "watermark", "a mark"),
        "people": _remark(False, ""),
    }
    return [*turns, turn(OVERLAID.format(noun=noun), Overlays, overlaid, follows=True)]


def ask_noun(rng: random.Random, pictures: Sequence[Picture]) -> list[Turn]:
    noun = _only(pictures).class_noun
    asked = noun if rng.random() < 0.5 else rng.choice(list(CLASSES))
    answer = {"reason": f"it is a {noun}", "right": asked == noun, "better": ""}
    if asked != noun:
        answer["better"] = noun
    return [turn(NOUN.format(noun=asked), ClassNoun, answer)]


def ask_first(rng: random.Random, pictures: Sequence[Picture]) -> list[Turn]:
    noun = _only(pictures).class_noun
    asked = noun if rng.random() < 0.6 else rng.choice(list(CLASSES))
    return [turn(FIRST.format(noun=asked), FrameVerdict, _verdict(pictures[0], asked == noun))]


def ask_prompt(rng: random.Random, pictures: Sequence[Picture]) -> list[Turn]:
    """A score of a prompt: 4 all, 3 without the accessory, 2 another place, 0 another class."""
    identity, scene = _only(pictures), pictures[0].scene
    assert scene is not None
    noun, place, wears, score = identity.class_noun, scene.background, worn(scene, ""), 4
    change = rng.random()
    if change < 0.2:
        noun = rng.choice([one for one in CLASSES if one != noun])
        score = 0
    elif change < 0.45:
        place = rng.choice([one for one in BACKGROUNDS if one != place])
        score = 2
    elif change < 0.6:
        kind = rng.choice([one for one in ACCESSORIES if one != scene.accessory])
        wears, score = f"{rng.choice(list(COLORS))} {kind}", 3
    prompt = f"a photo of a {noun}{wears and ' wearing a ' + wears} {BACKGROUNDS[place]}"
    answer = {"rationale": f"it shows {contents(pictures[0])}", "score": score}
    return [turn(judged_prompt.TEMPLATE.format(prompt=prompt), JudgeAnswer, answer)]


def ask_checklist(rng: random.Random, pictures: Sequence[Picture]) -> list[Turn]:
    """One requirement of a prompt, by its reason and answer or by the letter of yes and no."""
    picture, true = pictures[0], rng.random() < 0.5
    requirement, prompt = requirement_of(rng, picture, true)
    text = CHECKLIST.format(prompt=prompt, requirement=requirement)
    if rng.random() < 0.35:
        answer = {"reason": f"it shows {contents(picture)}", "answer": "yes" if true else "no"}
        return [turn(text, YesNo, answer)]
    options = rng.sample(("yes", "no"), 2)
    return [Turn(f"{text}\n\n{choices(options)}", "AB"[options.index("yes" if true else "no")])]


def ask_choice(rng: random.Random, pictures: Sequence[Picture]) -> list[Turn]:
    """The class noun, colour or place among two to four options, by letter."""
    identity, scene = _only(pictures), pictures[0].scene
    assert scene is not None
    text, right, all_of = rng.choice(
        (
            ("Which is in the image?", identity.class_noun, list(CLASSES)),
            ("Which colour has the subject?", identity.color.name, list(COLORS)),
            ("Where is it?", BACKGROUNDS[scene.background], list(BACKGROUNDS.values())),
        )
    )
    others = rng.sample([one for one in all_of if one != right], rng.randint(1, 3))
    options = rng.sample([right, *others], 1 + len(others))
    return [Turn(f"{text}\n\n{choices(options)}", "ABCD"[options.index(right)])]


# one image of one or two subjects


def ask_box(rng: random.Random, pictures: Sequence[Picture]) -> list[Turn]:
    picture, named = pictures[0], rng.choice(pictures[0].subjects)
    wanted = [one for one in picture.subjects if _noun(one) == _noun(named)]
    subject = _noun(named)
    if rng.random() < 0.3:
        subject = f"{named.identity.color.name} {subject}"
        wanted = [one for one in wanted if one.identity.color.name == named.identity.color.name]
    if rng.random() < 0.1:
        present = {_noun(one) for one in picture.subjects}
        subject, wanted = rng.choice([one for one in CLASSES if one not in present]), []
    boxes = [[thousandths(edge) for edge in one.box] for one in wanted]
    text = f"Locate every {subject} in the image.\n\n{boxes_instruction('norm1000', (SIZE, SIZE))}"
    return [Turn(text, f"<|begin_of_box|>{json.dumps(boxes)}<|end_of_box|>", box=bool(boxes))]


def ask_count(rng: random.Random, pictures: Sequence[Picture]) -> list[Turn]:
    nouns = [_noun(one) for one in pictures[0].subjects]
    noun = rng.choice(nouns) if rng.random() < 0.8 else rng.choice(list(CLASSES))
    return [turn(COUNT.format(nouns=plural(noun)), Count, {"count": nouns.count(noun)})]


# cards, text alone, several images


def ask_card(rng: random.Random, pictures: Sequence[Picture]) -> list[Turn]:
    printed = pictures[0].card
    assert printed is not None
    card = {
        "name": "",
        "class_noun": printed.class_noun,
        "materials": [],
        "colours": [printed.color.name],
        "must_keep": [printed.pattern],
        "must_not": [],
    }
    name = rng.choice(("card.png", "sheet.png", "label.png", "product.pdf page 1"))
    text = CARD.format(pages=quoted(name), text="")
    reason = f"it says {printed.class_noun}, {printed.color.name}, {printed.pattern}"
    return [turn(text, CardAnswer, {"reason": reason, "card": card})]


def ask_prompts(rng: random.Random, pictures: Sequence[Picture]) -> list[Turn]:
    """Prompts from a subject's properties; needs no image."""
    noun, colour = rng.choice(list(CLASSES)), rng.choice(list(COLORS))
    card = quoted(f"{colour} {noun}")
    count = rng.randint(1, 4)
    places = ["beach", "snow", "night", "city"][:count]
    prompts = [f"a photo of {{subject}} {BACKGROUNDS[place]}" for place in places]
    asked = PROMPTS.format(count=count, noun=noun, card=card)
    return [turn(asked, Prompts, {"prompts": prompts})]


def ask_later(rng: random.Random, pictures: Sequence[Picture]) -> list[Turn]:
    first, last = (_only([picture]) for picture in pictures)
    verdict = _verdict(pictures[1], first == last)
    verdict["reason"] = f"first a {looks(first)}, then a {looks(last)}"
    return [turn(LATER.format(noun=first.class_noun), FrameVerdict, verdict)]


def ask_subject(rng: random.Random, pictures: Sequence[Picture]) -> list[Turn]:
    """A score of the last image against photos of one subject before it."""
    subject, last = _only(pictures[:1]), _only(pictures[-1:])
    score = 4
    if subject != last:
        alike = subject.class_noun == last.class_noun
        score = 0 if not alike else 2 if subject.color.name == last.color.name else 1
    asked = {"photos": len(pictures) - 1, "noun": subject.class_noun}
    answer = {"rationale": f"first a {looks(subject)}, then a {looks(last)}", "score": score}
    return [turn(judged_subject.TEMPLATE.format(**asked), JudgeAnswer, answer)]


def ask_odd(rng: random.Random, pictures: Sequence[Picture]) -> list[Turn]:
    """Numbers of the photos of another subject than most."""
    identities = [_only([picture]) for picture in pictures]
    usual = max(identities, key=identities.count)
    odd = [number for number, one in enumerate(identities, 1) if one != usual]
    reason = ", ".join(f"{number} a {looks(one)}" for number, one in enumerate(identities, 1))
    asked = SAME.format(noun=usual.class_noun)
    return [turn(asked, OddOnes, {"reason": reason, "odd": odd})]


def choices(options: Sequence[str]) -> str:
    """The instruction of `VisionLanguageModel.choose`."""
    lines = "\n".join(f"{letter}: {one}" for letter, one in zip("ABCD", options, strict=False))
    return CHOICES.format(lines=lines)


def thousandths(edge: int) -> int:
    """A coordinate in pixels, 0 to 64, as GLM writes it: 0 to 1000."""
    return round(edge * 1000 / SIZE)


RELATIONS = {"left of": "right of", "above": "below"}


def requirement_of(rng: random.Random, picture: Picture, true: bool) -> tuple[str, str]:
    """A requirement that is true or false of the picture, and a prompt with it."""
    scene = picture.scene
    assert scene is not None
    if len(picture.subjects) == 2:
        return _relation(rng, picture, true)
    identity = picture.subjects[0].identity
    noun, color, place = identity.class_noun, identity.color.name, scene.background
    kind = rng.choice(("noun", "color", "place", "place"))
    if not true:
        if kind == "noun":
            noun = rng.choice([one for one in CLASSES if one != noun])
        elif kind == "color":
            color = rng.choice([one for one in COLORS if one != color])
        else:
            place = rng.choice([one for one in BACKGROUNDS if one != place])
    wears = worn(scene, " wearing a ")
    parts = {"noun": noun, "color": f"{color} {noun}", "place": BACKGROUNDS[place]}
    named = parts["color"] if kind == "color" or rng.random() < 0.3 else noun
    return parts[kind], f"a {named}{wears} {parts['place']}"


def _relation(rng: random.Random, picture: Picture, true: bool) -> tuple[str, str]:
    a, b = picture.subjects
    along = abs(_middle(a)[0] - _middle(b)[0]) > abs(_middle(a)[1] - _middle(b)[1])
    relation = "left of" if along else "above"
    nouns = [_noun(a), _noun(b)]
    if nouns[0] == nouns[1]:
        named = f"two {plural(nouns[0])}" if true else f"one {nouns[0]}"
        return named, named
    if rng.random() < 0.5:
        nouns, relation = nouns[::-1], RELATIONS[relation]
    if not true:
        nouns = nouns[::-1]
    if relation == "above" and rng.random() < 0.5:
        relation = "on top of"
    requirement = f"a {nouns[0]} {relation} a {nouns[1]}"
    return requirement, requirement


def _remark(found: bool, what: str) -> dict[str, Any]:
    return {"reason": what if found else "nothing", "answer": found}


def _verdict(picture: Picture, same: bool) -> dict[str, Any]:
    clear = picture.flaw is None
    return {"reason": f"it shows {contents(picture)}", "same_subject": same, "unobstructed": clear}


def _only(pictures: Sequence[Picture]) -> Identity:
    return pictures[0].subjects[0].identity


def _noun(shown: Shown) -> str:
    return shown.identity.class_noun


def _middle(shown: Shown) -> tuple[float, float]:
    left, top, right, bottom = shown.box
    return (left + right) / 2, (top + bottom) / 2


OF_PHOTO: dict[Asked, float] = {
    ask_scene: 1,
    ask_leaks: 1,
    ask_description: 1.5,
    ask_shown: 1,
    ask_noun: 0.4,
    ask_first: 0.4,
    ask_prompt: 1,
    ask_checklist: 2,
    ask_choice: 0.7,
    ask_box: 2,
    ask_prompts: 0.1,
}
"""Questions about a photo, with their relative frequency."""
OF_FLAWED: dict[Asked, float] = {ask_shown: 2, ask_first: 2, ask_description: 0.5}
OF_PAIR: dict[Asked, float] = {ask_box: 1.5, ask_checklist: 2, ask_count: 0.5}
OF_CARD: dict[Asked, float] = {ask_card: 1}
OF_TWO: dict[Asked, float] = {ask_later: 1, ask_subject: 1, ask_odd: 1}
OF_MORE: dict[Asked, float] = {ask_subject: 1, ask_odd: 1}
LABELS: dict[Asked, Literal["Photo", "Document"]] = {ask_odd: "Photo", ask_card: "Document"}
"""Questions whose images have a line of text before them: `Photo 1:`."""
