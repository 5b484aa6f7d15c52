"""What the photos show, in words: captions beside them, and the prompts of a whole run.

`<photo stem>.txt`, or a line {"file_name": ..., "text": ...} of `metadata.jsonl`; the former counts.
Other files that may hold captions are named in the findings, and not read.
"""

import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dreambooth_core.config import Config, Subject
from dreambooth_core.config.documents import parse_json
from dreambooth_core.config.inputs import WILDCARDS
from dreambooth_core.data.findings import FOLDER, Finding, about, printable
from dreambooth_core.errors import ConfigError
from dreambooth_core.storage.records import ImageSet

TABLE = "metadata.jsonl"
MAX_BYTES = 65_536
"""Of a photo's caption file: a larger one is refused, and no more of it is read."""
MAX_TABLE_BYTES = 1_000_000
"""The same of `metadata.jsonl`."""
UNREAD = frozenset({".caption", ".captions", ".tags"})
"""Endings of caption files that other tools write."""
UNREAD_TABLES = frozenset(
    {"metadata.json", "metadata.csv", "metadata.parquet", "captions.json", "captions.jsonl"}
)
NOT_CAPTIONS = frozenset({"readme", "license", "licence", "licenses"})
"""Stems of text files about the folder."""

MOST = 20
"""Wrong lines of one file that are told one by one."""


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
    findings += _unread(folder, photos)
    texts = {}
    for photo in photos:
        line = lines.get(photo.name, "")
        sidecar = photo.with_suffix(".txt")
        own = _own(sidecar, findings) if sidecar != photo and os.path.lexists(sidecar) else ""
        if own and line and own != line:
            findings.append(_second(sidecar, photo))
        if own or line:
            texts[photo] = (sidecar, own) if own else (folder / TABLE, line)
    return texts, findings


def _own(sidecar: Path, findings: list[Finding]) -> str:
    """The words of a photo's caption file, on one line; empty where it has none."""
    data = _read(sidecar, MAX_BYTES, findings)
    own = " ".join((data or "").split())
    if data is not None and not own:
        limit, remedy = "words", "write a caption, or remove the file: it counts for nothing"
        findings.append(about("soft", sidecar, "caption", "an empty caption", limit, remedy))
    return own


def _second(sidecar: Path, photo: Path) -> Finding:
    measure = f"{printable(photo.name)} has another caption in {TABLE}"
    remedy = f"remove one; the one in {printable(sidecar.name)} is used"
    return about("soft", sidecar, "caption", measure, "one caption for each photo", remedy)


def _unread(folder: Path, photos: Sequence[Path]) -> list[Finding]:
    """Files that may hold captions and are not read as such."""
    sidecars = {photo.with_suffix(".txt") for photo in photos} | set(photos)
    findings = []
    for path in sorted(folder.iterdir()):
        name, ending = path.name.lower(), path.suffix.lower()
        if path in sidecars or name.startswith(".") or path.is_dir():
            continue
        if ending in UNREAD or name in UNREAD_TABLES:
            what, limit = "a file of captions that is not read", f"<photo>.txt or {TABLE}"
            remedy = "write its captions so, or remove it"
        elif ending == ".txt" and path.stem.lower() not in NOT_CAPTIONS:
            what, limit = (
                "a caption without its photo",
                "a photo of the same stem beside <photo>.txt",
            )
            remedy = "rename it, or remove it"
        else:
            continue
        findings.append(about("soft", path, "caption", what, limit, remedy))
    return findings


def _table(folder: Path, names: set[str]) -> tuple[dict[str, str], list[Finding]]:
    """File name -> caption, as `metadata.jsonl` has them."""
    path = folder / TABLE
    found: dict[str, str] = {}
    findings: list[Finding] = []
    unknown: list[str] = []
    if not os.path.lexists(path):
        return found, findings
    text = _read(path, MAX_TABLE_BYTES, findings) or ""
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = parse_json(line, "the line")
            name, text = str(entry["file_name"]), " ".join(entry["text"].split())
        except (ConfigError, KeyError, TypeError, AttributeError):
            limit = '{"file_name": ..., "text": ...} on each line'
            measure = f"line {number} has not both"
            findings.append(about("hard", path, "caption", measure, limit, "write it so"))
            continue
        if name not in names:
            unknown.append(f"line {number} is for {printable(name)[:80]}")
        elif found.setdefault(name, text) != text:
            measure = f"line {number} has another caption for {printable(name)}"
            findings.append(about("hard", path, "caption", measure, "one each", "remove one"))
    return found, [*_unknown(path, unknown), *_first(path, findings)]


def _first(path: Path, findings: list[Finding]) -> list[Finding]:
    """At most `MOST` of the findings of one file, and how many more there are."""
    more, rest = len(findings) - MOST, "all lines are right"
    if more <= 0:
        return findings
    left = about("hard", path, "caption", f"{more:,} more lines are wrong", rest, "correct them")
    return [*findings[:MOST], left]


def _unknown(path: Path, lines: list[str]) -> list[Finding]:
    """Lines for other photos than the folder's, which are left aside."""
    shown, more = lines[:MOST], len(lines) - MOST
    if more > 0:
        shown.append(f"{more:,} more lines are for other photos")
    limit, remedy = "a photo of this folder", "correct the name; it is left aside"
    return [about("soft", path, "caption", measure, limit, remedy) for measure in shown]


def _read(path: Path, most: int, findings: list[Finding]) -> str | None:
    """A caption file's text, of at most so many bytes; None for a photo under such a name."""
    from dreambooth_core.data.images import looks_like_image

    try:
        data = _bytes(path, most)
        if looks_like_image(data[:16]):
            return None
        if len(data) > most:
            what = f"more than {most:,} bytes"
        elif b"\0" in data:
            what = "binary: it holds NUL bytes"
        else:
            return data.decode("utf-8-sig")
    except OSError as error:
        what = f"cannot be read ({error.strerror})"
    except UnicodeDecodeError:
        what = "not UTF-8"
    limit = f"a regular file of text in UTF-8, at most {most:,} bytes"
    findings.append(about("hard", path, "caption", what, limit, "save it anew, or remove it"))
    return None


def _bytes(path: Path, most: int) -> bytes:
    """The first `most` + 1 bytes of a regular file; raises `OSError`, also for any other file.

    Opened without blocking: a pipe without a writer would be waited for.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(0, "not a regular file")
        return file.read(most + 1)


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
