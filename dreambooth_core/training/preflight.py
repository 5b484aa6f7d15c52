"""What is checked of a config before anything is spent: base, work folder, store and MLflow."""

import errno
import os
from pathlib import Path

from dreambooth_core.config import Config
from dreambooth_core.diffusion import base_model, families
from dreambooth_core.errors import ConfigError
from dreambooth_core.storage import stores
from dreambooth_core.tracking import mlflow as tracking


def check(config: Config) -> None:
    """What this machine can tell in milliseconds; nothing is fetched or written.

    Raises `ConfigError` for what is asked in vain and for a work folder that cannot be written, and
    `ModelError` for a base's folder that is not what `model.family` loads.
    """
    base_model.check_base(config.model)
    family = families.load_family(config.model.family)
    families.check(family, config)
    if Path(config.model.base).is_dir():
        families.check_folder(family, Path(config.model.base))
    check_work(config.paths.work)


def check_shapes(config: Config) -> None:
    """Make the base's components from their configs, as shapes without weights; takes seconds.

    A Hub id is fetched for it. Raises `ModelError` for configs that make no model of the family.
    """
    import torch

    family, folder = families.load_family(config.model.family), base_model.base_folder(config.model)
    families.check_folder(family, folder)
    with torch.device("meta"):
        family.load(folder)


def check_servers(config: Config) -> None:
    """That store and MLflow answer, each within `deadlines.SERVER_SECONDS`.

    Raises what `stores.reach` and `tracking.reach` raise.
    """
    stores.reach(config.storage)
    tracking.reach(config)


def check_work(work: Path) -> None:
    """Raises `ConfigError` for a folder that is none, or that can neither be made nor written."""
    if not _may_be_a_path(work):
        raise ConfigError(
            f"paths.work {str(work)[:60]!r} cannot be made: it is too long, or holds a NUL character; "
            "name another"
        )
    place = next(path for path in (work, *work.absolute().parents) if os.path.lexists(path))
    if not place.is_dir():
        raise ConfigError(f"paths.work {work} cannot be made: {place} is no folder; name another")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ConfigError(
            f"paths.work {work} cannot be written: {place} is read-only for this user; name "
            "another, or change its rights"
        )


def _may_be_a_path(path: Path) -> bool:
    """Whether the operating system takes the name, whether or not a file has it."""
    try:
        os.lstat(path)
    except OSError as error:
        return error.errno != errno.ENAMETOOLONG
    except ValueError:
        return False
    return True
