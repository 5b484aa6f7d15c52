"""The Python API, exported by `dreambooth_core`: functions with the names of the commands."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth_core import config as configs
from dreambooth_core.config import Config

if TYPE_CHECKING:
    from dreambooth_core.data.dataset import Validation
    from dreambooth_core.training.standalone import TrainingResult

WORK = Path(".dreambooth")


def load_config(
    path: str | Path, overrides: Sequence[str] = (), recipe: str | None = None
) -> Config:
    """A YAML config with `a.b=value` overrides, over a recipe's settings if one is named.

    Raises `ConfigError`.
    """
    return configs.load_config(Path(path), tuple(overrides), recipe)


def validate(folder: str | Path, resolution: int = 512) -> "Validation":
    """Findings in a folder of photos to be trained at `resolution` pixels; nothing is changed or stored."""
    from dreambooth_core.data import dataset

    return dataset.validate(Path(folder), configs.Dataset(), resolution)


def train(config: Config) -> "TrainingResult":
    """Run photo checks, class images and training; resume from the last checkpoint, reuse a stored result.

    Raises `DatasetRefused`, `StageFailed` and `StorageError`; `Preempted` after SIGTERM.
    """
    from dreambooth_core.training.standalone import train_alone

    return train_alone(config)


def sample(
    model: str,
    prompts: Sequence[str],
    out: str | Path,
    *,
    seeds: int = 4,
    work: str | Path = WORK,
) -> list[Path]:
    """Sample `seeds` images per prompt from a registered model (NAME, NAME@alias, NAME/version) as PNGs.

    `{subject}` in a prompt becomes identifier and class noun. Raises `ConfigError` for an unknown model.
    """
    from dreambooth_core.registry.outputs import SampleRequest, sample_model

    request = SampleRequest(tuple(prompts), seeds, Path(out))
    return list(sample_model(None, Path(work), model, request))


def export(
    model: str,
    form: str,
    out: str | Path,
    *,
    work: str | Path = WORK,
    overrides: Sequence[str] = (),
) -> list[Path]:
    """Export a registered model, or the weights trained from a YAML config, in a format of docs/exports.md.

    Raises `ConfigError` for an unknown model or an unsupported format.
    """
    from dreambooth_core.registry.outputs import export_model

    return export_model(model, form, Path(out), Path(work), tuple(overrides))
