"""Layout of the published dataset: a folder of photos per subject, and a list of their classes."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dreambooth_core.config.documents import parse_csv, read_text
from dreambooth_core.config.prompts import PromptSet
from dreambooth_core.errors import ConfigError

LIST = "prompts_and_classes.txt"
LIVE = frozenset({"cat", "dog"})
"""Classes with the prompts for live subjects."""


class BenchSubject(NamedTuple):
    """A folder of photos and its class noun."""

    name: str
    folder: Path
    class_noun: str

    @property
    def prompts(self) -> PromptSet:
        return "live" if self.class_noun in LIVE else "objects"


def subjects_in(folder: Path) -> tuple[BenchSubject, ...]:
    """Subjects of a folder, sorted by name.

    Class nouns are read from `prompts_and_classes.txt`; without it, they are the folders' names without a
    trailing number. Raises `ConfigError` for a folder without subfolders or a subject without a class.
    """
    if not os.path.isdir(folder):  # where Path.is_dir raises for a name that is too long
        raise ConfigError(
            f"{folder} is not a folder: name one with a subfolder of photos per subject"
        )
    found = sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    if not found:
        raise ConfigError(f"{folder} has no subfolders: put each subject's photos into one")
    classes = _classes(folder / LIST)
    unknown = [path.name for path in found if classes and path.name not in classes]
    if unknown:
        raise ConfigError(
            f"{folder / LIST} names no class for {', '.join(unknown)}: add a line each"
        )
    return tuple(
        BenchSubject(path.name, path, classes.get(path.name) or _noun(path)) for path in found
    )


def chosen(subjects: Sequence[BenchSubject], selection: str | None) -> tuple[BenchSubject, ...]:
    """All subjects, the first N, or a comma-separated list of names; raises `ConfigError`."""
    if selection is None:
        return tuple(subjects)
    if selection.isdecimal():
        if not 1 <= int(selection) <= len(subjects):
            raise ConfigError(f"--subjects {selection}: must be 1 to {len(subjects)}")
        return tuple(subjects[: int(selection)])
    known = {subject.name: subject for subject in subjects}
    names = list(dict.fromkeys(name.strip() for name in selection.split(",")))
    missing = [name for name in names if name not in known]
    if missing:
        raise ConfigError(f"unknown subject {', '.join(missing)}; choose from: {', '.join(known)}")
    return tuple(known[name] for name in names)


def _classes(path: Path) -> dict[str, str]:
    """Subject -> class, from the lines between the header and the next empty line; {} without a file."""
    if not path.exists():
        return {}
    text = "\n".join(read_text(path, "list of classes").splitlines())
    _, _, listed = text.partition("subject_name,class\n")
    rows = [row for row in parse_csv(listed.partition("\n\n")[0], str(path)) if len(row) == 2]
    if not rows:
        raise ConfigError(f"{path} holds no lines of subject_name,class: restore it, or remove it")
    return {name.strip(): noun.strip() for name, noun in rows}


def _noun(folder: Path) -> str:
    return re.sub(r"[_-]+", " ", re.sub(r"\d+$", "", folder.name)).strip() or folder.name
