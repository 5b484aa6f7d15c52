"""One way per file to hand a model to other programs, found by its name; each has an `EXPORT`.

Everything an export writes can be loaded without a line of this project. What comes out hangs on
what goes in alone: the same weights are the same bytes, so no file holds a date.

The files here import torch and the model libraries inside their functions only: what a format takes
is read by the command line, which must answer at once.
"""

import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dreambooth_core import plugins
from dreambooth_core.config import Config
from dreambooth_core.config.base import NAME
from dreambooth_core.diffusion.base_model import base_folder
from dreambooth_core.diffusion.families import load_family, methods
from dreambooth_core.errors import ConfigError
from dreambooth_core.storage.records import Weights

ANY = "*"
"""In `Export.takes`: every pipeline class that is not named there."""

FOLDERS = ("model_index.json", "pytorch_lora_weights.safetensors")
"""What a folder that an export wrote has one of."""


@dataclass(frozen=True)
class ModelInfo:
    """What a file says of the model beside its tensors."""

    title: str
    """Name of the model, and of the file or folder."""
    trigger: str
    """The words that mean the subject: `sks robot`."""
    digest: str
    """Of the weights it is made from."""
    resolution: int
    """Side of the images it was trained on, in pixels."""
    base: str
    revision: str | None = None
    licence: str | None = None
    """Where it is known: a name, a link or the whole text."""


@dataclass(frozen=True)
class TrainedModel:
    """A trained model: where its weights and its base lie, and what is known about it."""

    family: str
    base: Path
    """Folder in diffusers' format."""
    weights: Path
    """Folder that `adapters.export` wrote."""
    method: str
    info: ModelInfo


class Export(Protocol):
    """A format."""

    name: str
    description: str
    """One line for people."""
    takes: Mapping[str, tuple[str, ...]]
    """Pipeline class, or `ANY`, -> values of `train.method`."""

    def write(self, source: TrainedModel, out: Path) -> list[Path]:
        """Write files or folders named after the model into the empty folder `out`.

        Raises `ConfigError` for weights that the format has no words for.
        """
        ...


def load_export(name: str) -> Export:
    """The export of `exports/<name>.py`; raises `ConfigError` for a name without a file."""
    found: Export = plugins.load(__name__, name).EXPORT
    return found


def possible(family: str, method: str) -> list[str]:
    """Names of the exports for models of this family that were trained by this method."""
    return [name for name in plugins.names(__name__) if _takes(load_export(name), family, method)]


def source_of(config: Config, weights: Weights, folder: Path) -> TrainedModel:
    """What `export` needs of a trained model whose weights were fetched into `folder`.

    Fetches the base if it is not here yet; raises what `base_model.base_folder` does.
    """
    info = ModelInfo(
        title=config.name,
        trigger=", ".join(subject.fill("{subject}") for subject in config.subjects),
        digest=weights.digest,
        resolution=config.model.resolution,
        base=config.model.base,
        revision=config.model.revision,
        licence=config.model.licence or None,
    )
    return TrainedModel(
        config.model.family, base_folder(config.model), folder, weights.method, info
    )


def export(name: str, source: TrainedModel, out: Path) -> list[Path]:
    """Write the model into the folder `out`, and return what is new there.

    All is written beside first and then renamed: a file is replaced at once; for a folder, which
    no rename can replace, the old one is moved away just before. Raises `ConfigError` when the
    format cannot hold such a model, or the title is no file name.
    """
    found = load_export(name)
    if not _takes(found, source.family, source.method):
        others = ", ".join(possible(source.family, source.method)) or "none"
        raise ConfigError(
            f"--format {name} cannot hold a {source.family} model trained by {source.method}; "
            f"possible: {others}"
        )
    if not re.fullmatch(NAME, source.info.title):
        raise ConfigError(
            f"{source.info.title!r} cannot name a file: use letters, digits, dot, dash and "
            "underscore, 64 at most"
        )
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=out) as beside:
        fresh, old = Path(beside, "fresh"), Path(beside, "old")
        fresh.mkdir()
        old.mkdir()
        written = found.write(source, fresh)
        _open_up(fresh)
        return [_put(path, out / path.name, old) for path in written]


def _open_up(folder: Path) -> None:
    """Give files the usual rights: safetensors makes them for their owner alone."""
    os.umask(mask := os.umask(0))
    for path in folder.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def _takes(found: Export, family: str, method: str) -> bool:
    of = load_family(family)
    taken = found.takes.get(of.pipeline_class, found.takes.get(ANY, ()))
    return method in taken and method in methods(of)


def _put(new: Path, place: Path, old: Path) -> Path:
    """Rename `new` to `place`; an older export there goes to `old`, and back if that fails."""
    if not place.is_dir() or place.is_symlink():
        return new.replace(place)
    if not any((place / name).is_file() for name in FOLDERS):
        raise ConfigError(
            f"{place} is a folder that no export made: move it away, or name another --out"
        )
    aside = place.replace(old / place.name)
    try:
        return new.replace(place)
    except OSError:
        aside.replace(place)
        raise
