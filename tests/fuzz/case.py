"""One bad input: what is written for it, which command reads it, and how the command must end."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

OK, BAD, REFUSED, FAILED = 0, 2, 3, 4
"""Exit codes: the input is fine; config or arguments; photos; a stage."""
WORK = "work"
"""`paths.work` of every case, below its working directory: the one place where files may appear."""
HANGS = 40.0
"""Seconds for a command whose server does not answer."""

Stdout = Literal["pipe", "full", "closed", "ascii"]


@dataclass(frozen=True)
class Case:
    """A command in a working directory of its own. Names are `category/what`."""

    name: str
    words: tuple[str, ...]
    """Arguments after `dreambooth`."""
    code: int
    build: Callable[[Path], object] = lambda folder: None
    """Writes the input into the working directory, where it is called before the command."""
    says: tuple[str, ...] = ()
    """What stdout or stderr must contain."""
    secret: str = ""
    """What neither of them may contain."""
    seconds: float = 20.0
    """Longest time that the command may take on a busy machine."""
    env: Mapping[str, str | None] = field(default_factory=dict)
    """Changes of the environment; None removes a variable."""
    stdout: Stdout = "pipe"
    writes: tuple[str, ...] = ()
    """Further paths, seen from the working directory, that the command may create."""
    as_nobody: bool = False
    """Run without root's rights; input files then belong to the user `nobody`."""
    fresh: bool = False
    """Run in a new interpreter rather than a forked one: for libraries that read the environment once."""
    harmless: bool = False
    """Whether the exit code may be 0 as well: for random damage."""
    wrong: str = ""
    """Why the command does not end like this yet; the case fails once it does."""

    @property
    def category(self) -> str:
        return self.name.partition("/")[0]


def document(**sections: Any) -> dict[str, Any]:
    """A config that is fine, with some sections in addition; its photos are in `data`."""
    plain: dict[str, Any] = {
        "name": "dog",
        "subject": {"images": "photos", "class_noun": "dog"},
        "model": {"base": "base", "resolution": 32},
        "prior": {"enabled": False},
        "train": {"steps": 2},
        "storage": {"uri": "file:///tmp/nowhere-at-all", "endpoint": None},
        "paths": {"work": WORK},
    }
    for name, section in sections.items():
        known = plain.get(name)
        both = isinstance(known, dict) and isinstance(section, dict)
        plain[name] = {**known, **section} if both else section
    return plain


def write_config(folder: Path, **sections: Any) -> Path:
    """`config.yaml` in the folder; the store is the folder `work/store` unless a section says otherwise."""
    sections.setdefault("storage", {"uri": f"file://{folder}/{WORK}/store"})
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(document(**sections), allow_unicode=True), encoding="utf-8")
    return path


def text(content: str | bytes, name: str = "config.yaml") -> Callable[[Path], None]:
    """Writes one file."""

    def build(folder: Path) -> None:
        data = content.encode() if isinstance(content, str) else content
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    return build
