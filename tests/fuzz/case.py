"""A fuzz case: its input files, the command that reads them, and the expected end of the command."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

OK, BAD, REFUSED, FAILED = 0, 2, 3, 4
"""Exit codes: success; an error in config or arguments; in photos; in a stage."""
WORK = "work"
"""`paths.work` of every case, below its working directory; commands may write only there."""
HANGS = 40.0
"""Time limit in seconds for a command whose server does not answer."""

Stdout = Literal["pipe", "full", "closed", "ascii"]


@dataclass(frozen=True)
class Case:
    """A command in its own working directory."""

    name: str
    """`category/what`."""
    words: tuple[str, ...]
    """Arguments after `dreambooth`."""
    code: int
    build: Callable[[Path], object] = lambda folder: None
    """Writes the input into the working directory before the command starts."""
    contains: tuple[str, ...] = ()
    """Texts that stdout or stderr must contain."""
    secret: str = ""
    """Text that neither may contain."""
    seconds: float = 20.0
    """Time limit of the command on a busy machine."""
    env: Mapping[str, str | None] = field(default_factory=dict)
    """Changes of the environment; None removes a variable."""
    stdout: Stdout = "pipe"
    writes: tuple[str, ...] = ()
    """Further paths, relative to the working directory, that the command may create."""
    as_nobody: bool = False
    """Run as the user `nobody`, who then owns the input files."""
    fresh: bool = False
    """Run in a new interpreter instead of a fork, for libraries that read the environment at import."""
    harmless: bool = False
    """Whether exit code 0 is accepted too, for random damage."""
    known_defect: str = ""
    """Reason of a known defect: the case is expected to fail, and reported once it passes."""

    @property
    def category(self) -> str:
        return self.name.partition("/")[0]


def document(**sections: Any) -> dict[str, Any]:
    """A valid config, merged with `sections`."""
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
    """Write `config.yaml` to the folder; the default store is `work/store`."""
    sections.setdefault("storage", {"uri": f"file://{folder}/{WORK}/store"})
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(document(**sections), allow_unicode=True), encoding="utf-8")
    return path


def text(content: str | bytes, name: str = "config.yaml") -> Callable[[Path], None]:
    """A `build` that writes one file."""

    def build(folder: Path) -> None:
        data = content.encode() if isinstance(content, str) else content
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    return build
