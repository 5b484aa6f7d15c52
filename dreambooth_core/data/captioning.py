"""Captions by a vision-language model, and checks of captions for leaks.

DreamBooth binds to the identifier what captions leave out. A leak is a phrase that describes the
subject itself (its colour, its material); training binds that property to these words instead. The
check applies to captions of any origin.
"""

import re
from collections.abc import Sequence
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, Field, StringConstraints, field_validator

from dreambooth_core import config
from dreambooth_core.config import Subject
from dreambooth_core.data import captions, files, images
from dreambooth_core.data.documents.text_search import FUNCTION_WORDS
from dreambooth_core.data.findings import Finding, about, printable
from dreambooth_core.errors import ConfigError, Unanswered
from dreambooth_core.storage.records import Record
from dreambooth_core.vision.language.messages import question, quoted
from dreambooth_core.vision.language.model import Conversation, VisionLanguageModel

if TYPE_CHECKING:
    from PIL.Image import Image

Phrase = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]
MAX_WORDS = 60
"""Limit of a scene; CLIP text encoders take 75 tokens."""
NO_MARKUP = re.compile(r"[^{}()\[\]<>|\\\n]+")
"""Text without braces (prompt templates) and without brackets (prompt weighting syntaxes)."""
OWN = "its colours, material, shape, pattern, markings, parts, breed or brand"

SCENE = """\
This photo shows a {noun} that an image model is to learn from a few photos. Describe everything except the \
{noun} itself: its surroundings, its position and pose, what it wears or holds in this photo only, other \
things and people, the light, the camera's angle and distance, the style of the picture. Do not mention what \
belongs to the {noun} in every photo: {own}. `scene` continues the words "a photo of a {noun}, " and has at \
most {words} words."""
LEAKS = """\
The image has this caption: {caption}
In it, {identifier} is the name of the {noun} in the image. Copy from the caption, word for word, every \
phrase that describes the {noun} itself and would be true of it in any other photo: {own}. Leave out phrases \
about its surroundings, pose, light and camera, what it wears in this photo only, other things, and the word \
{noun}. First give a `reason` in one sentence; `phrases` is empty when there is no such phrase."""
OF_CARD = "{own}, and in particular {identity}"
AGAIN = "{phrases} belongs to the {noun} itself. Write `scene` again without any mention of it, or of {own}."


class Scene(BaseModel):
    """What a photo shows besides the subject's own properties."""

    scene: Phrase

    @field_validator("scene")
    @classmethod
    def _is_plain(cls, scene: str) -> str:
        if not (NO_MARKUP.fullmatch(scene) and scene.isprintable()):
            raise ValueError("write words and commas, without brackets and braces")
        if len(scene.split()) > MAX_WORDS:
            raise ValueError(f"write at most {MAX_WORDS} words")
        return scene.rstrip(" .")


class Leaks(BaseModel):
    """Phrases of a caption that describe the subject itself."""

    reason: str
    phrases: tuple[Phrase, ...] = Field(max_length=20)


class CaptionedPhoto(Record):
    """A photo's new caption."""

    photo: str
    """File name."""
    caption: str
    """A prompt template: `a photo of {subject}, on a table`."""
    leaks: tuple[str, ...]
    """Phrases in it that describe the subject itself."""
    written: bool
    """False if a sidecar appeared meanwhile; it is kept without `overwrite`."""


def caption_folder(
    model: VisionLanguageModel,
    folder: Path,
    subject: Subject,
    rules: config.Dataset,
    overwrite: bool = False,
) -> tuple[list[CaptionedPhoto], list[Finding]]:
    """Write a caption into `<photo>.txt` for every photo of the folder that has none.

    With `overwrite` for all photos. Findings: leaks left after one correction, photos that cannot be
    decoded, and photos without a usable answer; the last two get no caption. Raises `ConfigError` if the
    folder does not exist, and the errors of `VisionLanguageModel.ask` except `Unanswered`.
    """
    findings: list[Finding] = []
    photos = _photos(folder, findings)
    known, remarks = captions.unfilled(folder, photos)
    made = []
    for photo in photos:
        if photo in known and not overwrite:
            continue
        try:
            image = _decoded(photo, rules)
            caption, leaks = caption_photo(model, image, subject)
        except (images.ImageRefused, Unanswered) as error:
            findings.append(without_caption(photo, error))
            continue
        if leaks:
            findings.append(leaking(photo.with_suffix(".txt"), leaks, subject))
        written = _write(photo.with_suffix(".txt"), caption, overwrite)
        made.append(CaptionedPhoto(photo=photo.name, caption=caption, leaks=leaks, written=written))
    return made, [*remarks, *findings]


def caption_photo(
    model: VisionLanguageModel, image: "Image", subject: Subject
) -> tuple[str, tuple[str, ...]]:
    """A caption template for one photo, and its leaks left after one correction.

    `{subject}` occurs once, for identifier and class noun. Raises `Unanswered`.
    """
    words = {"noun": subject.class_noun, "own": _own(subject)}
    conversation = Conversation(model)
    scene = conversation.ask(SCENE.format(**words, words=MAX_WORDS), Scene, [image]).value.scene
    leaks = leaks_in(model, image, _caption(scene), subject)
    if leaks:
        phrases = ", ".join(map(quoted, leaks))
        scene = conversation.ask(AGAIN.format(**words, phrases=phrases), Scene).value.scene
        leaks = leaks_in(model, image, _caption(scene), subject)
    return _caption(scene), leaks


def leaks_in(
    model: VisionLanguageModel, image: "Image", caption: str, subject: Subject
) -> tuple[str, ...]:
    """Phrases of a caption that describe the subject itself: by the model with the image, and of the card.

    All are substrings of the filled caption. Raises `Unanswered`, and `ValueError` for a caption with
    unknown placeholders.
    """
    filled = subject.fill(caption)

    class PhrasesOfCaption(Leaks):
        """Phrases of this caption, which describe the subject itself."""

        @field_validator("phrases")
        @classmethod
        def _are_in_the_caption(cls, phrases: tuple[str, ...]) -> tuple[str, ...]:
            if missing := [one for one in phrases if one.lower() not in filled.lower()]:
                raise ValueError(f"{missing[0]!r} is not in the caption: copy its words exactly")
            return phrases

    words = {"identifier": subject.identifier, "noun": subject.class_noun, "own": _own(subject)}
    text = LEAKS.format(caption=quoted(filled), **words)
    named = {subject.identifier.lower(), subject.class_noun.lower()}
    found = model.ask([question(text, [image])], PhrasesOfCaption).value.phrases
    leaks = [phrase for phrase in found if phrase.lower() not in named]
    return (*leaks, *(one for one in card_leaks(filled, subject) if one not in leaks))


def card_leaks(caption: str, subject: Subject) -> tuple[str, ...]:
    """Words of a filled caption that name materials, details or colours of the subject's card.

    Of a phrase the noun with the word before it is searched: "white star" of "a white star on the left
    side". Colours of one word are left to the model, because other things have the same. Empty without a
    card.
    """
    card = subject.card
    if card is None:
        return ()
    nouns = [_noun_of(phrase) for phrase in (*card.materials, *card.must_keep)]
    nouns += [noun for noun in map(_noun_of, card.colours) if " " in noun]
    found = [_occurrences(noun, caption) for noun in nouns if noun]
    return tuple(dict.fromkeys(one for group in found for one in group))


def _noun_of(phrase: str) -> str:
    """The noun that a phrase begins with, and the word before it."""
    words = dropwhile(lambda word: word.lower() in FUNCTION_WORDS, phrase.split())
    return " ".join([*takewhile(lambda word: word.lower() not in FUNCTION_WORDS, words)][-2:])


def _own(subject: Subject) -> str:
    """What captions leave out, for questions; with the card's phrases as quoted data."""
    identity = subject.card.identity if subject.card else ()
    return OF_CARD.format(own=OWN, identity=quoted("; ".join(identity))) if identity else OWN


def check_captions(
    folder: Path,
    subject: Subject,
    rules: config.Dataset,
    model: VisionLanguageModel | None = None,
) -> list[Finding]:
    """Findings about the captions of a folder, of any origin.

    Checks: identifier exactly once, class noun present, no words between the two, no words of the
    subject's card; with a model also other leaks. Raises the errors of `caption_folder`.
    """
    findings: list[Finding] = []
    photos = _photos(folder, findings)
    known, remarks = captions.unfilled(folder, photos)
    for photo, (source, text) in known.items():
        try:
            findings += wording_findings(source, subject.fill(text), subject)
            if model is None:
                leaks = card_leaks(subject.fill(text), subject)
            else:
                leaks = leaks_in(model, _decoded(photo, rules), text, subject)
            if leaks:
                findings.append(leaking(source, leaks, subject))
        except (images.ImageRefused, Unanswered, ValueError) as error:
            findings.append(_unchecked(source, error))
    return [*remarks, *findings]


def wording_findings(source: Path, caption: str, subject: Subject) -> list[Finding]:
    """Findings from the text of a filled caption alone."""
    identifier, noun = subject.identifier, subject.class_noun
    count = len(_occurrences(identifier, caption))
    remedy = "write {subject} once, where it names the subject"
    findings = []
    if count != 1:
        measure = f"{identifier} {count} times"
        findings.append(about("soft", source, "caption", measure, "exactly once", remedy))
    if not _occurrences(noun, caption):
        measure = f"no {noun}"
        findings.append(about("soft", source, "caption", measure, "the class noun", remedy))
    between = (
        rf"(?<!\w){re.escape(identifier)}(?!\w)\s+((?:[\w-]+\s+){{1,3}}){re.escape(noun)}(?!\w)"
    )
    if found := re.search(between, caption, re.IGNORECASE):
        findings.append(leaking(source, (found.group(1).strip(),), subject))
    return findings


def _photos(folder: Path, findings: list[Finding]) -> list[Path]:
    if not folder.is_dir():
        raise ConfigError(f"folder {folder} does not exist: give a folder of photos")
    return files.candidates(folder, findings)[0]


def _decoded(photo: Path, rules: config.Dataset) -> "Image":
    """The decoded photo; raises `ImageRefused`."""
    return images.decode(files.photo_bytes(photo, rules.max_bytes), rules.max_pixels).image


def _caption(scene: str) -> str:
    return f"a photo of {{subject}}, {scene}"


def _write(sidecar: Path, caption: str, overwrite: bool) -> bool:
    """Whether it was written; an existing file is kept without `overwrite`."""
    if overwrite:
        sidecar.unlink(missing_ok=True)  # writing through a link would change its target
    try:
        with sidecar.open("x", encoding="utf-8") as file:
            file.write(f"{caption}\n")
    except FileExistsError:
        return False
    return True


def _occurrences(word: str, caption: str) -> Sequence[str]:
    pattern = r"\s+".join(map(re.escape, word.split()))
    found: list[str] = re.findall(rf"(?<!\w){pattern}(?!\w)", caption, re.IGNORECASE)
    return found


def leaking(source: Path, leaks: Sequence[str], subject: Subject) -> Finding:
    """A finding about a caption that describes the subject itself."""
    measure = f"describes the {subject.class_noun} itself: {printable(', '.join(leaks))[:200]}"
    limit = f"no property of the {subject.class_noun} itself"
    return about("soft", source, "caption leak", measure, limit, "remove these words")


def without_caption(photo: Path, error: Exception) -> Finding:
    """A finding about a photo whose caption could not be written."""
    measure = f"got no caption: {printable(str(error))[:200]}"
    return about("soft", photo, "caption", measure, "a caption", "write one, or run it again")


def _unchecked(source: Path, error: Exception) -> Finding:
    measure = f"was not checked: {printable(str(error))[:200]}"
    return about("soft", source, "caption", measure, "a caption that can be read", "see the reason")
