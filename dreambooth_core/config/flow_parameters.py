"""Parameters of the flows other than a run's config; Prefect shows them as forms."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from dreambooth_core.config import Config, Section, Storage, Tracking, config_for_folder
from dreambooth_core.config.base import Address

Model = Annotated[str, Field(min_length=1, max_length=150)]


class Registry(Section):
    """Location of the model registry."""

    work: Path = Path(".dreambooth")
    """Folder of all local state."""
    mlflow: Address | None = None
    """URI of the MLflow server; default: a sqlite file in the folder."""

    @property
    def config(self) -> Config:
        """A default config with these settings."""
        tracking = Tracking(uri=self.mlflow)
        return config_for_folder(self.work).model_copy(update={"tracking": tracking})


class Retraining(Section):
    """Retrain when the photos or the base have a new version."""

    config: Config
    """Config of the run; `dataset://NAME@latest` is resolved when the flow starts."""
    branch: str | None = None
    """Branch or tag of the base's Hub repository, whose head replaces `model.revision`; default: none."""


class Promotion(Section):
    """Manual approval of a registered version."""

    model: Model
    """NAME (its candidate), NAME@alias or NAME/version."""
    days: Annotated[int, Field(ge=1, le=90)] = 7
    """Days to wait for a decision."""
    registry: Registry = Registry()
    """Location of the registry."""


class Assessment(Section):
    """Evaluate a registered version again, against the current champion."""

    model: Model
    """NAME (its candidate), NAME@alias or NAME/version."""
    seeds: Annotated[int, Field(ge=1, le=64)] | None = None
    """Images per prompt; default: as in its run."""
    registry: Registry = Registry()
    """Location of the registry."""


Value = bool | int | float | str | None


class Sweep(Section):
    """Hyperparameter sweep; the best trial is evaluated by the gate."""

    config: Config
    """Config that the trials change."""
    grid: Annotated[
        dict[str, Annotated[tuple[Value, ...], Field(min_length=1)]], Field(min_length=1)
    ]
    """Dotted config key -> values, combined as a grid: `{train.steps: [400, 800]}`."""
    trials: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Number of grid points, chosen at random; default: all."""


class Cleaning(Section):
    """Garbage collection of the store and of local state."""

    delete: bool = False
    """Delete; false: only count bytes."""
    days: Annotated[float, Field(ge=1, le=3650)] = 30
    """Minimum age in days of what is deleted; younger results keep their inputs."""
    storage: Storage = Storage()
    """The store to clean."""
    work: Path = Path(".dreambooth")
    """Folder of all local state, with the data of a `local` store."""

    @property
    def config(self) -> Config:
        """A default config with these settings."""
        return config_for_folder(self.work).model_copy(update={"storage": self.storage})
