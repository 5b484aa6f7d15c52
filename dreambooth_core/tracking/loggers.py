"""TensorBoard and Weights & Biases through Lightning's loggers; every point is logged once."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from dreambooth_core.config import Config
from dreambooth_core.errors import ConfigError, Preempted, StageFailed, one_line
from dreambooth_core.storage.records import LearningCurves
from dreambooth_core.tracking.learning_curves import curves_of, last_steps, new_points

FLUSH_SECONDS = 5


@dataclass
class LoggerTarget:
    """A logger and what it has logged."""

    logger: Any
    """A Lightning logger."""
    last_step: int = -1
    """Last step logged by an earlier attempt; -1 for none."""
    close: Callable[[bool], None] = lambda finished: None
    """Called after the last point; the argument is whether the training has finished."""
    logged: dict[str, int] = field(default_factory=dict)


class Loggers:
    """The loggers of `tracking.loggers`."""

    def __init__(self, config: Config, key: str | None) -> None:
        """`key`: training key; None, as on all ranks but the first, opens no logger.

        Raises `ConfigError` if a logger is not installed, `StageFailed` if one does not start.
        """
        names = config.tracking.loggers if key else ()
        for name in names:
            if find_spec(name) is None:
                raise ConfigError(
                    f"tracking.loggers: {name} is not installed: pip install "
                    "'dreambooth-factory[trackers]', or remove it"
                )
        self._targets = [_OPEN[name](config, str(key)) for name in names]

    def log(self, record: LearningCurves) -> None:
        """Log the new points of a training's curves."""
        curves = curves_of(record)
        for target in self._targets:
            for step, values in new_points(curves, target.logged).items():
                if step > target.last_step:
                    target.logger.log_metrics(values, step)
            target.logged = last_steps(target.logged, curves)

    def close(self, *, finished: bool) -> None:
        """Flush and close all loggers; `finished` unless the training will be resumed."""
        for target in self._targets:
            target.logger.finalize("success")
            target.close(finished)


def _tensorboard(config: Config, key: str) -> LoggerTarget:
    """TensorBoard in `<work>/tensorboard/<key>`; each attempt logs all points again and purges old ones."""
    from pytorch_lightning.loggers import TensorBoardLogger

    folder = config.paths.work.resolve() / "tensorboard"
    return LoggerTarget(
        TensorBoardLogger(folder, name=key, version="", purge_step=0, flush_secs=FLUSH_SECONDS)
    )


def _wandb(config: Config, key: str) -> LoggerTarget:
    """A run with the id `key[:32]` and files in `<work>/wandb`.

    Its server cannot delete points: a resumed run continues after the last one. Offline, each attempt
    writes complete curves to its own folder.
    """
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb
    from pytorch_lightning.loggers import WandbLogger

    quiet: Mapping[str, Any] = {"console": "off", "silent": True, "disable_git": True}
    settings = wandb.Settings(**quiet, disable_code=True, x_disable_stats=True)
    logger = WandbLogger(
        name=config.name,
        id=key[:32],
        project=config.tracking.experiment,
        save_dir=config.paths.work.resolve(),
        settings=settings,
    )
    try:
        run = logger.experiment
    except wandb.Error as error:
        raise StageFailed(
            f"Weights & Biases does not start ({one_line(error)}): log in with `wandb login`, or set "
            "WANDB_MODE=offline, or remove it from tracking.loggers"
        ) from error

    def close(finished: bool) -> None:
        if not finished:
            run.mark_preempting()
        run.finish(exit_code=0 if finished else Preempted.exit_code)

    return LoggerTarget(logger, int(run.summary.get("trainer/global_step", -1)), close)


_OPEN: Mapping[str, Callable[[Config, str], LoggerTarget]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
}
