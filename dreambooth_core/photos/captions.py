"""What the photos show, in words: captions beside them, and the prompts of a whole run.

`<photo stem>.txt`, or a line {"file_name": ..., "text": ...} of `metadata.jsonl`; the former counts.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dreambooth_core.config import Config, Subject
from dreambooth_core.config.inputs import WILDCARDS
from dreambooth_core.photos.findings import FOLDER, Finding, about, printable
from dreambooth_core.records import ImageSet

TABLE = "metadata.jsonl"
MAX_BYTES = 1_000_000
"""Of a file with captions: a larger one is something else."""


class Prompts(NamedTuple):
    """All prompts of a run, each once, and who goes by which."""

    table: tuple[str, ...]
    instance: tuple[int, ...]
    """Photo -> row."""
    classes: tuple[int, ...]
    """Subject -> row of its class prompt; empty without a prior."""
    empty: int | None
    """Row of the empty prompt, for `train.caption_dropout`."""


def prompts(config: Config, instance: ImageSet) -> Prompts:
    """The prompts of a run: captions, instance prompts where there is none, class prompts."""
    subjects = config.subjects
    shown = [
        image.prompt or subjects[image.subject].fill(subjects[image.subject].instance_prompt)
        for image in instance.images
    ]
    classes = [subject.fill(subject.class_prompt) for subject in subjects if config.prior.enabled]
    blank = [""] if config.train.caption_dropout else []
    table = tuple(dict.fromkeys([*shown, *classes, *blank]))
    return Prompts(
        table=table,
        instance=tuple(map(table.index, shown)),
        classes=tuple(map(table.index, classes)),
        empty=table.index("") if blank else None,
    )


def beside(
    folder: Path, photos: Sequence[Path], subject: Subject
) -> tuple[dict[Path, str], list[Finding]]:
    """The filled captions of those photos that have one, and what is wrong with any."""
    texts, findings = written(folder, photos)
    captions = {}
    for photo, (source, text) in texts.items():
        try:
            captions[photo] = subject.fill(text)
        except ValueError:
            findings.append(_braces(source, text))
            continue
        if not _names(captions[photo], subject.identifier):
            findings.append(_nameless(source, captions[photo], subject))
    named = any(_names(caption, subject.identifier) for caption in captions.values())
    if captions.keys() == set(photos) and not named:
        findings.append(_unnamed(folder, subject))
    return captions, findings


def written(
    folder: Path, photos: Sequence[Path]
) -> tuple[dict[Path, tuple[Path, str]], list[Finding]]:
    """Photo -> the file of its caption and the words in it, braces and all; and what is wrong."""
    lines, findings = _table(folder, {path.name for path in photos})
    texts = {}
    for photo in photos:
        source, text = folder / TABLE, lines.get(photo.name, "")
        sidecar = photo.with_suffix(".txt")
        if sidecar != photo and sidecar.is_file():
            own = " ".join(_text(sidecar, findings).split())
            source, text = (sidecar, own) if own else (source, text)
        if text:
            texts[photo] = source, text
    return texts, findings


def _table(folder: Path, names: set[str]) -> tuple[dict[str, str], list[Finding]]:
    """File name -> caption, as `metadata.jsonl` has them."""
    path = folder / TABLE
    found: dict[str, str] = {}
    findings: list[Finding] = []
    if not path.is_file():
        return found, findings
    for number, line in enumerate(_text(path, findings).split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            name, text = str(entry["file_name"]), " ".join(entry["text"].split())
        except (ValueError, KeyError, TypeError, AttributeError):
            limit = '{"file_name": ..., "text": ...} on each line'
            measure = f"line {number} has not both"
            findings.append(about("hard", path, "caption", measure, limit, "write it so"))
            continue
        if name not in names:
            measure = f"line {number} is for {printable(name)[:80]}"
            remedy = "correct the name; it is left aside"
            findings.append(
                about("soft", path, "caption", measure, "a photo of this folder", remedy)
            )
        elif found.setdefault(name, text) != text:
            measure = f"line {number} has another caption for {printable(name)}"
            findings.append(about("hard", path, "caption", measure, "one each", "remove one"))
    return found, findings


def _text(path: Path, findings: list[Finding]) -> str:
    """A caption file's text; a photo under such a name has none."""
    from dreambooth_core.images import looks_like_image

    try:
        if path.stat().st_size <= MAX_BYTES:
            data = path.read_bytes()
            return "" if looks_like_image(data[:16]) else data.decode("utf-8-sig")
        what = f"{path.stat().st_size:,} bytes"
    except OSError as error:
        what = f"cannot be read ({error.strerror})"
    except UnicodeDecodeError:
        what = "not UTF-8"
    limit = f"text in UTF-8 of at most {MAX_BYTES:,} bytes"
    findings.append(about("hard", path, "caption", what, limit, "save it anew, or remove it"))
    return ""


def _names(caption: str, identifier: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(identifier)}(?!\w)", caption) is not None


def _braces(source: Path, text: str) -> Finding:
    limit = ", ".join(f"{{{name}}}" for name in WILDCARDS) + " alone in braces"
    return about(
        "hard", source, "caption", f"the caption {_short(text)}", limit, "correct its braces"
    )


def _nameless(source: Path, caption: str, subject: Subject) -> Finding:
    measure = f"the caption {_short(caption)} without {subject.identifier}"
    remedy = "write {subject} where it names the subject; it is used as it is"
    return about(
        "soft", source, "caption", measure, "the identifier token in every caption", remedy
    )


def _unnamed(folder: Path, subject: Subject) -> Finding:
    """What such captions teach, they teach the plain words in them."""
    return Finding(
        level="hard",
        file=FOLDER,
        check="caption",
        measure=f"every photo has a caption, and none says {subject.identifier}",
        limit="the identifier token in at least one",
        remedy=f"write {{subject}} into the captions in {folder.name}, or remove them",
    )


def _short(text: str) -> str:
    return f"{printable(text[:60])!r}{'...' if len(text) > 60 else ''}"
