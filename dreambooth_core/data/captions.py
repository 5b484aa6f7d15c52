"""Captions of photos, and the prompts of a run.

A caption is `<photo stem>.txt`, or a line {"file_name": ..., "text": ...} of `metadata.jsonl`; the
former takes precedence. Other caption files are reported as findings and not read.
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
"""Size limit of a photo's caption file."""
MAX_TABLE_BYTES = 1_000_000
"""Size limit of `metadata.jsonl`."""
UNREAD = frozenset({".caption", ".captions", ".tags"})
"""Extensions of other tools' caption files."""
UNREAD_TABLES = frozenset(
    {"metadata.json", "metadata.csv", "metadata.parquet", "captions.json", "captions.jsonl"}
)
NOT_CAPTIONS = frozenset({"readme", "license", "licence", "licenses"})
"""Stems of text files about the folder."""

MAX_LISTED = 20
"""Wrong lines of one file with a finding each; the rest is counted in one."""


class Prompts(NamedTuple):
    """The distinct prompts of a run, and indices into them."""

    table: tuple[str, ...]
    instance: tuple[int, ...]
    """Photo -> row."""
    classes: tuple[int, ...]
    """Subject -> row of its class prompt; empty without a prior."""
    empty: int | None
    """Row of the empty prompt, for `train.caption_dropout`."""


def prompts(config: Config, instance: ImageSet) -> Prompts:
    """The prompts of a run: captions, or else instance prompts, and class prompts."""
    subjects = config.subjects
    of_photos = [
        image.prompt or subjects[image.subject].fill(subjects[image.subject].instance_prompt)
        for image in instance.images
    ]
    classes = [subject.fill(subject.class_prompt) for subject in subjects if config.prior.enabled]
    blank = [""] if config.train.caption_dropout else []
    table = tuple(dict.fromkeys([*of_photos, *classes, *blank]))
    return Prompts(
        table=table,
        instance=tuple(map(table.index, of_photos)),
        classes=tuple(map(table.index, classes)),
        empty=table.index("") if blank else None,
    )


def filled(
    folder: Path, photos: Sequence[Path], subject: Subject
) -> tuple[dict[Path, str], list[Finding]]:
    """Captions with placeholders filled, of the photos that have one, and findings."""
    texts, findings = unfilled(folder, photos)
    captions = {}
    for photo, (source, text) in texts.items():
        try:
            captions[photo] = subject.fill(text)
        except ValueError:
            findings.append(_wrong_braces(source, text))
            continue
        if not _contains(captions[photo], subject.identifier):
            findings.append(_without_identifier(source, captions[photo], subject))
    named = any(_contains(caption, subject.identifier) for caption in captions.values())
    if captions.keys() == set(photos) and not named:
        findings.append(_no_identifier(folder, subject))
    return captions, findings


def unfilled(
    folder: Path, photos: Sequence[Path]
) -> tuple[dict[Path, tuple[Path, str]], list[Finding]]:
    """Photo -> caption file and caption with its placeholders; and findings."""
    lines, findings = _table(folder, {path.name for path in photos})
    findings += _unread(folder, photos)
    texts = {}
    for photo in photos:
        line = lines.get(photo.name, "")
        sidecar = photo.with_suffix(".txt")
        own = _sidecar(sidecar, findings) if sidecar != photo and os.path.lexists(sidecar) else ""
        if own and line and own != line:
            measure = f"{printable(photo.name)} has another caption in {TABLE}"
            remedy = f"remove one; the one in {printable(sidecar.name)} is used"
            findings.append(_soft(sidecar, measure, "one caption for each photo", remedy))
        if own or line:
            texts[photo] = (sidecar, own) if own else (folder / TABLE, line)
    return texts, findings


def _sidecar(path: Path, findings: list[Finding]) -> str:
    """The caption in a photo's caption file, on one line; empty without words."""
    data = _read(path, MAX_BYTES, findings)
    caption = " ".join((data or "").split())
    if data is not None and not caption:
        remedy = "write a caption, or remove the file, which is ignored"
        findings.append(_soft(path, "an empty caption", "words", remedy))
    return caption


def _soft(path: Path, measure: str, limit: str, remedy: str) -> Finding:
    return about("soft", path, "caption", measure, limit, remedy)


def _unread(folder: Path, photos: Sequence[Path]) -> list[Finding]:
    """Soft findings about other caption files and captions without a photo."""
    sidecars = {photo.with_suffix(".txt") for photo in photos} | set(photos)
    findings = []
    for path in sorted(folder.iterdir()):
        name, ending = path.name.lower(), path.suffix.lower()
        if path in sidecars or name.startswith(".") or path.is_dir():
            continue
        if ending in UNREAD or name in UNREAD_TABLES:
            what, limit = "a caption file that is not read", f"<photo>.txt or {TABLE}"
            remedy = "convert its captions, or remove it"
        elif ending == ".txt" and path.stem.lower() not in NOT_CAPTIONS:
            what, limit = "a caption without its photo", "a photo of the same stem"
            remedy = "rename it, or remove it"
        else:
            continue
        findings.append(_soft(path, what, limit, remedy))
    return findings


def _table(folder: Path, names: set[str]) -> tuple[dict[str, str], list[Finding]]:
    """File name -> caption in `metadata.jsonl`, and findings."""
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
            measure = f"line {number} lacks one of both"
            findings.append(about("hard", path, "caption", measure, limit, "correct the line"))
            continue
        if name not in names:
            unknown.append(f"line {number} is for {printable(name)[:80]}")
        elif found.setdefault(name, text) != text:
            measure = f"line {number} has another caption for {printable(name)}"
            limit = "one caption per photo"
            findings.append(about("hard", path, "caption", measure, limit, "remove one"))
    return found, [*_unknown(path, unknown), *_limited(path, findings)]


def _limited(path: Path, findings: list[Finding]) -> list[Finding]:
    """At most `MAX_LISTED` findings of one file, and one with the number of the others."""
    more = len(findings) - MAX_LISTED
    if more <= 0:
        return findings
    measure, limit = f"{more:,} more lines are wrong", "valid lines only"
    rest = about("hard", path, "caption", measure, limit, "correct them")
    return [*findings[:MAX_LISTED], rest]


def _unknown(path: Path, lines: list[str]) -> list[Finding]:
    """Soft findings about lines for photos that are not in the folder."""
    measures, more = lines[:MAX_LISTED], len(lines) - MAX_LISTED
    if more > 0:
        measures.append(f"{more:,} more lines are for other photos")
    limit, remedy = "a photo of this folder", "correct the name; the line is ignored"
    return [_soft(path, measure, limit, remedy) for measure in measures]


def _read(path: Path, max_bytes: int, findings: list[Finding]) -> str | None:
    """A caption file's text; None when it is unreadable (with a finding) or an image."""
    from dreambooth_core.data.images import looks_like_image

    try:
        data = _bytes(path, max_bytes)
        if looks_like_image(data[:16]):
            return None
        if len(data) > max_bytes:
            what = f"more than {max_bytes:,} bytes"
        elif b"\0" in data:
            what = "binary: it contains NUL bytes"
        else:
            return data.decode("utf-8-sig")
    except OSError as error:
        what = f"cannot be read ({error.strerror})"
    except UnicodeDecodeError:
        what = "not UTF-8"
    limit = f"a regular file of text in UTF-8, at most {max_bytes:,} bytes"
    findings.append(about("hard", path, "caption", what, limit, "save it as UTF-8, or remove it"))
    return None


def _bytes(path: Path, max_bytes: int) -> bytes:
    """The first `max_bytes` + 1 bytes of a regular file; raises `OSError` for other files.

    Opened non-blocking, since opening a pipe without a writer would block.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(0, "not a regular file")
        return file.read(max_bytes + 1)


def _contains(caption: str, identifier: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(identifier)}(?!\w)", caption) is not None


def _wrong_braces(source: Path, text: str) -> Finding:
    limit = "no placeholder other than " + ", ".join(f"{{{name}}}" for name in WILDCARDS)
    return about(
        "hard", source, "caption", f"the caption {_short(text)}", limit, "correct its braces"
    )


def _without_identifier(source: Path, caption: str, subject: Subject) -> Finding:
    measure = f"the caption {_short(caption)} without {subject.identifier}"
    remedy = "write {subject} in place of the subject; the caption is used unchanged"
    return _soft(source, measure, "the identifier token in every caption", remedy)


def _no_identifier(folder: Path, subject: Subject) -> Finding:
    """Training on such captions would not teach the identifier."""
    return Finding(
        level="hard",
        file=FOLDER,
        check="caption",
        measure=f"every photo has a caption, and none contains {subject.identifier}",
        limit="the identifier token in at least one",
        remedy=f"write {{subject}} into the captions in {folder.name}, or remove them",
    )


def _short(text: str) -> str:
    return f"{printable(text[:60])!r}{'...' if len(text) > 60 else ''}"
