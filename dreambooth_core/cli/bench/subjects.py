"""The published data set's layout: a folder of photos per subject, and a list of their classes."""

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
"""The classes whose subjects get the prompts for the living."""


class BenchSubject(NamedTuple):
    """A folder of photos, and what it shows."""

    name: str
    folder: Path
    class_noun: str

    @property
    def prompts(self) -> PromptSet:
        return "live" if self.class_noun in LIVE else "objects"


def subjects_in(folder: Path) -> tuple[BenchSubject, ...]:
    """The subfolders of the published layout, by name, with their classes.

    The classes stand in `prompts_and_classes.txt`; where that is missing a folder's name, without a
    number at its end, is the class noun. Raises `ConfigError` when there is nothing to bench.
    """
    if not os.path.isdir(folder):  # where Path.is_dir raises for a name that is too long
        raise ConfigError(f"{folder} is no folder: name one with a subfolder of photos per subject")
    found = sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    if not found:
        raise ConfigError(
            f"{folder} has no subfolders: each subject's photos are in one of its own"
        )
    classes = _classes(folder / LIST)
    unknown = [path.name for path in found if classes and path.name not in classes]
    if unknown:
        raise ConfigError(
            f"{folder / LIST} names no class for {', '.join(unknown)}: add a line each"
        )
    return tuple(
        BenchSubject(path.name, path, classes.get(path.name) or _noun(path)) for path in found
    )


def chosen(subjects: Sequence[BenchSubject], wish: str | None) -> tuple[BenchSubject, ...]:
    """All, the first N, or those named between commas; raises `ConfigError` for who is not there."""
    if wish is None:
        return tuple(subjects)
    if wish.isdecimal():
        if not 1 <= int(wish) <= len(subjects):
            raise ConfigError(f"--subjects {wish}: there are 1 to {len(subjects)} to choose from")
        return tuple(subjects[: int(wish)])
    known = {subject.name: subject for subject in subjects}
    names = list(dict.fromkeys(name.strip() for name in wish.split(",")))
    missing = [name for name in names if name not in known]
    if missing:
        raise ConfigError(f"no subject {', '.join(missing)}; there is: {', '.join(known)}")
    return tuple(known[name] for name in names)


def _classes(path: Path) -> dict[str, str]:
    """Subject -> class, from the lines between the header and the next empty one; {} without a file."""
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
