"""Checks of a config before a run: base model, work folder, store and MLflow."""

import errno
import os
from pathlib import Path

from dreambooth_core.config import Config
from dreambooth_core.diffusion import base_model, families
from dreambooth_core.errors import ConfigError
from dreambooth_core.storage import stores
from dreambooth_core.tracking import mlflow as tracking


def check(config: Config) -> None:
    """Checks that take milliseconds and neither download nor write.

    Raises `ConfigError` for settings that the family does not support and for a work folder that
    cannot be written, `ModelError` for a base folder that `model.family` does not load.
    """
    base_model.check_base(config.model)
    family = families.load_family(config.model.family)
    families.check(family, config)
    if Path(config.model.base).is_dir():
        families.check_folder(family, Path(config.model.base))
    check_work(config.paths.work)


def check_shapes(config: Config) -> None:
    """Instantiate the base's components on the meta device, without weights; takes seconds.

    A Hub id is downloaded first. Raises `ModelError` for configs that are no model of the family.
    """
    import torch

    family, folder = families.load_family(config.model.family), base_model.base_folder(config.model)
    families.check_folder(family, folder)
    with torch.device("meta"):
        family.load(folder)


def check_servers(config: Config) -> None:
    """Check that store and MLflow answer, each within `deadlines.SERVER_SECONDS`.

    Raises the errors of `stores.reach` and `tracking.reach`.
    """
    stores.reach(config.storage)
    tracking.reach(config)


def check_work(work: Path) -> None:
    """Raises `ConfigError` for a path that is no folder, cannot be created or is read-only."""
    if not _is_valid_path(work):
        raise ConfigError(
            f"paths.work {str(work)[:60]!r} cannot be created: it is too long, or contains a NUL character; "
            "set another"
        )
    existing = next(path for path in (work, *work.absolute().parents) if os.path.lexists(path))
    if not existing.is_dir():
        raise ConfigError(
            f"paths.work {work} cannot be created: {existing} is no folder; set another"
        )
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(
            f"paths.work {work} cannot be written: {existing} is read-only for this user; set "
            "another, or change its permissions"
        )


def _is_valid_path(path: Path) -> bool:
    """Whether the operating system accepts the path, existing or not."""
    try:
        os.lstat(path)
    except OSError as error:
        return error.errno != errno.ENAMETOOLONG
    except ValueError:
        return False
    return True
