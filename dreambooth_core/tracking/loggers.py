"""TensorBoard and Weights & Biases, by Lightning's loggers: each is told every point once."""

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
    """Where curves go, and what they hold there."""

    logger: Any
    """A Lightning logger."""
    last_step: int = -1
    """The last step that it has from an earlier attempt."""
    close: Callable[[bool], None] = lambda over: None
    """Told whether the training is over, after the last point."""
    told: dict[str, int] = field(default_factory=dict)


class Loggers:
    """What `tracking.loggers` names."""

    def __init__(self, config: Config, key: str | None) -> None:
        """`key`: the training's; nothing is opened without one, as on all ranks but the first.

        Raises `ConfigError` for a tracker that is not installed, `StageFailed` for one that does
        not start.
        """
        names = config.tracking.loggers if key else ()
        for name in names:
            if find_spec(name) is None:
                raise ConfigError(
                    f"tracking.loggers: {name} is not installed: pip install "
                    "'dreambooth-factory[trackers]', or leave it out"
                )
        self._places = [_PLACES[name](config, str(key)) for name in names]

    def show(self, course: LearningCurves) -> None:
        """Tell what of a training's course is new."""
        curves = curves_of(course)
        for place in self._places:
            for step, values in new_points(curves, place.told).items():
                if step > place.last_step:
                    place.logger.log_metrics(values, step)
            place.told = last_steps(place.told, curves)

    def close(self, *, over: bool) -> None:
        """Write out what waits; `over` unless the training will go on some time."""
        for place in self._places:
            place.logger.finalize("success")
            place.close(over)


def _tensorboard(config: Config, key: str) -> LoggerTarget:
    """`<work>/tensorboard/<key>`, where each attempt tells everything anew and voids what was there."""
    from pytorch_lightning.loggers import TensorBoardLogger

    folder = config.paths.work.resolve() / "tensorboard"
    return LoggerTarget(
        TensorBoardLogger(folder, name=key, version="", purge_step=0, flush_secs=FLUSH_SECONDS)
    )


def _wandb(config: Config, key: str) -> LoggerTarget:
    """A run that is called as the training's key begins, with its files in `<work>/wandb`.

    Its server takes no point back: a resumed run goes on behind the last it has. Offline, each
    attempt leaves the whole curves in a folder of its own.
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
            "WANDB_MODE=offline, or leave it out of tracking.loggers"
        ) from error

    def close(over: bool) -> None:
        if not over:
            run.mark_preempting()
        run.finish(exit_code=0 if over else Preempted.exit_code)

    return LoggerTarget(logger, int(run.summary.get("trainer/global_step", -1)), close)


_PLACES: Mapping[str, Callable[[Config, str], LoggerTarget]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
}
