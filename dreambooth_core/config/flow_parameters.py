"""What the flows ask for beside a run's config: the forms that a person fills in."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from dreambooth_core.config import Config, Section, Storage, Tracking, placed
from dreambooth_core.config.base import Address

Model = Annotated[str, Field(min_length=1, max_length=150)]


class Registry(Section):
    """Where the models are registered."""

    work: Path = Path(".dreambooth")
    """The one folder of all local state."""
    mlflow: Address | None = None
    """Tracking server; a sqlite file in the folder when left out."""

    @property
    def config(self) -> Config:
        """The same as a config that says nothing else."""
        tracking = Tracking(uri=self.mlflow)
        return placed(self.work).model_copy(update={"tracking": tracking})


class Retraining(Section):
    """Train again when there is something new."""

    config: Config
    """What to train; `dataset://NAME@latest` among its photos is the newest version on that day."""
    branch: str | None = None
    """Branch or tag of the base's Hub repository whose newest commit is learned from, in the place of
    `model.revision`."""


class Promotion(Section):
    """Let a person decide about a registered version."""

    model: Model
    """NAME (its candidate), NAME@alias or NAME/version."""
    days: Annotated[int, Field(ge=1, le=90)] = 7
    """How long to wait for an answer."""
    registry: Registry = Registry()


class Assessment(Section):
    """Judge a registered version again, against who is in service now."""

    model: Model
    """NAME (its candidate), NAME@alias or NAME/version."""
    seeds: Annotated[int, Field(ge=1, le=64)] | None = None
    """Images per prompt; as many as in its run when left out."""
    registry: Registry = Registry()


Value = bool | int | float | str | None


class Sweep(Section):
    """Try several trainings of a subject; the best one goes to the gate."""

    config: Config
    """What they have in common."""
    grid: Annotated[
        dict[str, Annotated[tuple[Value, ...], Field(min_length=1)]], Field(min_length=1)
    ]
    """Key of the config -> values to try, all with all: `{train.steps: [400, 800]}`."""
    trials: Annotated[int, Field(ge=1, le=1000)] | None = None
    """As many of the grid's points, drawn at random; all of them when left out."""


class Cleaning(Section):
    """Delete what nothing needs any more."""

    delete: bool = False
    """Without it, bytes are counted and nothing is deleted."""
    days: Annotated[float, Field(ge=1, le=3650)] = 30
    """What is younger stays, and all that it needs."""
    storage: Storage = Storage()
    work: Path = Path(".dreambooth")
    """The one folder of all local state, where a `local` store lies."""

    @property
    def config(self) -> Config:
        """The same as a config that says nothing else."""
        return placed(self.work).model_copy(update={"storage": self.storage})
