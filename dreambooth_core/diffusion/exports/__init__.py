"""Export formats for other programs: one module per format, found by name, each with an `EXPORT`.

Exported files load without this project. Equal weights give equal bytes: no file has a date.

The modules import torch and the model libraries inside functions only, so that the command line can
list formats quickly.
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
"""Key of `Export.takes` for all pipeline classes without a key of their own."""

FOLDERS = ("model_index.json", "pytorch_lora_weights.safetensors")
"""Every exported folder contains one of these files."""


@dataclass(frozen=True)
class ModelInfo:
    """Metadata of a model for the exported files."""

    title: str
    """Name of the model, and of the file or folder."""
    trigger: str
    """Words for the subject in prompts: `sks robot`."""
    digest: str
    """Digest of the weights."""
    resolution: int
    """Side of the training images, in pixels."""
    base: str
    revision: str | None = None
    licence: str | None = None
    """A name, a link or the full text; None if unknown."""


@dataclass(frozen=True)
class TrainedModel:
    """A trained model: its weights, its base and its metadata."""

    family: str
    base: Path
    """Folder in diffusers' format."""
    weights: Path
    """Folder written by `adapters.export`."""
    method: str
    info: ModelInfo


class Export(Protocol):
    """An export format."""

    name: str
    description: str
    """One line for the command line's help."""
    takes: Mapping[str, tuple[str, ...]]
    """Pipeline class, or `ANY`, -> supported values of `train.method`."""

    def write(self, source: TrainedModel, out: Path) -> list[Path]:
        """Write files or folders named after the model into the empty folder `out`.

        Raises `ConfigError` for weights that the format cannot represent.
        """
        ...


def load_export(name: str) -> Export:
    """The export of `exports/<name>.py`; raises `ConfigError` for a name without a file."""
    found: Export = plugins.load(__name__, name).EXPORT
    return found


def possible(family: str, method: str) -> list[str]:
    """Names of the exports that support a family and training method."""
    return [name for name in plugins.names(__name__) if _takes(load_export(name), family, method)]


def source_of(config: Config, weights: Weights, folder: Path) -> TrainedModel:
    """The input of `export` for a model whose weights were fetched into `folder`.

    Downloads the base if necessary; raises as `base_model.base_folder`.
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
    """Write the model into the folder `out`; returns the new files and folders.

    Written to a temporary folder first and then renamed: existing files are replaced atomically, an
    existing export folder is moved away just before. Raises `ConfigError` when the format does not
    support the model, and for a title that is not a valid file name.
    """
    found = load_export(name)
    if not _takes(found, source.family, source.method):
        others = ", ".join(possible(source.family, source.method)) or "none"
        raise ConfigError(
            f"--format {name} does not support a {source.family} model trained by {source.method}; "
            f"supported: {others}"
        )
    if not re.fullmatch(NAME, source.info.title):
        raise ConfigError(
            f"{source.info.title!r} is not a valid file name: use letters, digits, dot, dash and "
            "underscore, 64 at most"
        )
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=out) as temporary:
        new, old = Path(temporary, "new"), Path(temporary, "old")
        new.mkdir()
        old.mkdir()
        written = found.write(source, new)
        _apply_umask(new)
        return [_replace(path, out / path.name, old) for path in written]


def _apply_umask(folder: Path) -> None:
    """Set permissions by the umask: safetensors creates files with mode 0600."""
    os.umask(mask := os.umask(0))
    for path in folder.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def _takes(found: Export, family: str, method: str) -> bool:
    known = load_family(family)
    supported = found.takes.get(known.pipeline_class, found.takes.get(ANY, ()))
    return method in supported and method in methods(known)


def _replace(new: Path, target: Path, old: Path) -> Path:
    """Rename `new` to `target`; an older export there moves to `old`, and back on failure."""
    if not target.is_dir() or target.is_symlink():
        return new.replace(target)
    if not any((target / name).is_file() for name in FOLDERS):
        raise ConfigError(
            f"{target} is a folder that no export wrote: move it away, or set another --out"
        )
    backup = target.replace(old / target.name)
    try:
        return new.replace(target)
    except OSError:
        backup.replace(target)
        raise
