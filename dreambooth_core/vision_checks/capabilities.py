"""The eight capabilities of vision-language models, each measured on a few images with known contents.

A measure is a share in [0, 1]. A question without a usable answer counts as wrong.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations

from dreambooth_core.config import Config, Subject
from dreambooth_core.data.captioning import caption_photo, wording_findings
from dreambooth_core.errors import StageFailed, Unanswered
from dreambooth_core.storage.records import Record
from dreambooth_core.vision.language.boxes import Box
from dreambooth_core.vision.language.messages import Message, Picture, question, quoted
from dreambooth_core.vision.language.model import Conversation, VisionLanguageModel
from dreambooth_core.vision_checks import questions
from dreambooth_core.vision_checks.pictures import FOLDER, Pair, Photo, material

OPPOSITE = {"left of": "right of", "above": "below"}
PROMPTS = 3


class Checked(Record):
    """The result of one capability."""

    passed: bool
    """`measured` is at least `limit`."""
    measured: float | None
    """In [0, 1]; None if it cannot be measured."""
    limit: float
    about: str
    """What was measured."""
    missing: str = ""
    """Why it cannot be measured."""


@dataclass(frozen=True)
class Capability:
    """One capability."""

    about: str
    measure: Callable[[VisionLanguageModel, Config], float]
    """In [0, 1]; raises `StageFailed` if no request can succeed, never `Unanswered`."""
    limit: float


def check(model: VisionLanguageModel, config: Config) -> dict[str, Checked]:
    """The result per capability, in the order of `CAPABILITIES`.

    A capability whose part is missing (the encoder of the search) did not pass; any other error that
    ends all requests is raised.
    """
    found = {}
    for name, capability in CAPABILITIES.items():
        about, limit = capability.about, capability.limit
        try:
            share = capability.measure(model, config)
        except StageFailed as error:
            if name != "search":
                raise
            found[name] = Checked(
                passed=False, measured=None, limit=limit, about=about, missing=str(error)
            )
            continue
        share = round(share, 3)
        found[name] = Checked(passed=share >= limit, measured=share, limit=limit, about=about)
    return found


def video(model: VisionLanguageModel, config: Config) -> float:
    """Share of right verdicts on pairs of frames: the same subject or another one of its class."""

    def right(first: Photo, last: Photo) -> bool:
        text = questions.LATER.format(noun=first.class_noun)
        asked = [question(text, [first.image, last.image])]
        verdict = model.ask(asked, questions.FrameVerdict).value
        return verdict.same_subject == (first.subject == last.subject)

    return _share(right, _alike())


def captions(model: VisionLanguageModel, config: Config) -> float:
    """Share of captions with the place, without the subject's colour, and with correct wording."""

    def right(photo: Photo) -> bool:
        subject = Subject(images=FOLDER, identifier="sks", class_noun=photo.class_noun)
        caption, leaks = caption_photo(model, photo.image, subject)
        filled = subject.fill(caption)
        names_place = photo.place.split()[-1] in filled
        scene = filled.replace(photo.place, "")
        faults = wording_findings(FOLDER, filled, subject)
        return names_place and photo.colour not in scene and not leaks and not faults

    return _share(right, ((photo,) for photo in material().photos))


def answers(model: VisionLanguageModel, config: Config) -> float:
    """Share of right answers about the class noun, and of right second turns in one conversation."""

    def right(photo: Photo, noun: str) -> bool:
        conversation = Conversation(model)
        text = questions.SHOWN.format(noun=noun)
        shown = conversation.ask(text, questions.Remark, [photo.image]).value
        if noun != photo.class_noun:
            return not shown.answer
        text = questions.VISIBLE.format(noun=noun)
        seen = conversation.ask(text, questions.Visibility).value
        return shown.answer and not seen.hidden.answer and not seen.cut_off.answer

    nouns = [photo.class_noun for photo in material().photos]
    others = nouns[3:] + nouns[:3]
    wrong = [(p, n) for p, n in zip(material().photos, others, strict=True) if n != p.class_noun]
    return _share(right, [*((photo, photo.class_noun) for photo in material().photos), *wrong])


def documents(model: VisionLanguageModel, config: Config) -> float:
    """Share of printed cards whose class noun and colour are read."""
    shares = []
    for card in material().cards:
        text = questions.CARD.format(pages=quoted(card.file), text="")
        try:
            asked = [question(text, [Picture(card.image, "Document 1:")])]
            read = model.ask(asked, questions.CardAnswer).value.card
        except Unanswered:
            shares.append(0.0)
            continue
        colours = " ".join(read.colours).lower()
        shares.append((read.class_noun == card.class_noun) / 2 + (card.colour in colours) / 2)
    return sum(shares) / len(shares)


def boxes(model: VisionLanguageModel, config: Config) -> float:
    """The lower of the mean overlap of boxes and the share of right answers on spatial relations."""
    overlaps = []
    for photo in material().photos:
        try:
            found = model.locate(photo.image, photo.class_noun).value
        except Unanswered:
            found = ()
        overlaps.append(overlap(found[0], Box(*photo.box)) if len(found) == 1 else 0.0)

    def right(pair: Pair, true: bool) -> bool:
        relation = pair.relation if true else OPPOSITE[pair.relation]
        requirement = f"a {pair.first} {relation} a {pair.second}"
        return _confirmed(model, pair, requirement, requirement) == true

    spatial = _share(right, ((pair, true) for pair in material().pairs for true in (True, False)))
    return min(sum(overlaps) / len(overlaps), spatial)


def prompts(model: VisionLanguageModel, config: Config) -> float:
    """Share of requested prompts that are written, differ, and have `{subject}` once."""
    share = []
    for photo in material().photos[::3]:
        card = quoted(f"{photo.colour} {photo.class_noun}")
        text = questions.PROMPTS.format(count=PROMPTS, noun=photo.class_noun, card=card)
        try:
            written = model.ask([question(text)], questions.Prompts).value.prompts
        except Unanswered:
            share.append(0.0)
            continue
        good = {one for one in written if one.count("{subject}") == 1}
        share.append(min(len(good), PROMPTS) / PROMPTS)
    return sum(share) / len(share)


def search(model: VisionLanguageModel, config: Config) -> float:
    """Share of texts and photos whose nearest photo is of the named class or the same subject.

    By the encoder of `evaluation.clip`, not by the vision-language model.
    """
    from dreambooth_core.vision.encoders import ImageEncoder

    evaluation = config.evaluation
    encoder = ImageEncoder(evaluation.clip, None, evaluation.preprocessing)
    photos = material().photos
    images = encoder.clip_images([photo.image for photo in photos])
    texts = encoder.clip_texts([f"a photo of a {one.colour} {one.class_noun}" for one in photos])
    alike = images @ images.T
    alike[range(len(photos)), range(len(photos))] = -1
    nearest = [*(texts @ images.T).argmax(axis=1), *alike.argmax(axis=1)]
    wanted = [*photos, *photos]
    right = [photos[n].class_noun == one.class_noun for n, one in zip(nearest, wanted, strict=True)]
    return float(sum(right) / len(right))


def judgement(model: VisionLanguageModel, config: Config) -> float:
    """Share of right answers on requirements of a prompt, half of which the image does not fulfil."""

    def right(photo: Photo, requirement: str, true: bool) -> bool:
        prompt = f"a {photo.class_noun} {photo.place if true else requirement}"
        return _confirmed(model, photo, prompt, requirement) == true

    photos = material().photos
    others = [*photos[1:], photos[0]]
    asked = [(photo, photo.place, True) for photo in photos]
    asked += [
        (photo, other.place, False)
        for photo, other in zip(photos, others, strict=True)
        if photo.place != other.place
    ]
    return _share(right, asked)


CAPABILITIES = {
    "video": Capability("right verdicts on frames of the same subject or another", video, 0.75),
    "captions": Capability("captions of the scene without the subject's colour", captions, 0.75),
    "questions": Capability("right answers about photos, over two turns", answers, 0.75),
    "documents": Capability("class noun and colour read from printed cards", documents, 0.75),
    "boxes": Capability("overlap of boxes, or right spatial answers if lower", boxes, 0.6),
    "prompts": Capability("different prompts with {subject} once", prompts, 0.9),
    "search": Capability("nearest photos of the right class, by evaluation.clip", search, 0.75),
    "judgement": Capability("right answers on requirements of prompts", judgement, 0.75),
}
"""Capability -> its check. Limits: about halfway between chance and faultless."""


def _share(right: Callable[..., bool], asked: "Iterable[tuple[object, ...]]") -> float:
    """Share of argument tuples for which `right` is true; `Unanswered` counts as false."""
    results = []
    for arguments in asked:
        try:
            results.append(right(*arguments))
        except Unanswered:
            results.append(False)
    return sum(results) / len(results)


def _alike() -> Iterator[tuple[Photo, Photo]]:
    """Pairs of photos of one class."""
    for first, last in combinations(material().photos, 2):
        if first.class_noun == last.class_noun:
            yield first, last


def _confirmed(
    model: VisionLanguageModel, shown: Photo | Pair, prompt: str, requirement: str
) -> bool:
    """Whether the model confirms a requirement, averaged over both orders of yes and no."""
    text = questions.CHECKLIST.format(prompt=prompt, requirement=requirement)
    asked: list[Message] = [question(text, [shown.image])]
    pair = [model.choose(asked, order) for order in (("yes", "no"), ("no", "yes"))]
    chances = [choice.probabilities["yes"] for choice in pair if choice is not None]
    if len(chances) == 2:
        return sum(chances) > 1
    return model.ask(asked, questions.YesNo).value.answer == "yes"


def overlap(found: Box, true: Box) -> float:
    """Intersection over union, in [0, 1]."""
    width = min(found.right, true.right) - max(found.left, true.left)
    height = min(found.bottom, true.bottom) - max(found.top, true.top)
    both = max(0.0, width) * max(0.0, height)
    return both / (_area(found) + _area(true) - both)


def _area(box: Box) -> float:
    return (box.right - box.left) * (box.bottom - box.top)
