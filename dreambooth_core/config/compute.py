"""Which processes draw, and on which machines."""

import os
import socket
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from dreambooth_core import plugins
from dreambooth_core.config.base import Minutes, Positive, Section
from dreambooth_core.config.storage import Paths

WORK = "DREAMBOOTH_WORK"
"""Variable of the environment with `paths.work` of a process that serves or draws for others."""


def _one_of_the_engines(schema: dict[str, Any]) -> None:
    """A drop-down in forms."""
    schema["enum"] = plugins.names("dreambooth_core.runtime.engines")


class Compute(Section):
    """Which processes draw and train, and on which machines; nothing here decides a result."""

    engine: Annotated[str, Field(json_schema_extra=_one_of_the_engines)] = "local"
    """A file of `dreambooth_core/runtime/engines/`: `local` is this machine, `ray` a Ray cluster."""
    workers: Positive = 1
    """Processes that draw class images, samples and images to measure at once."""
    nodes: Positive = 1
    """Machines of the cluster that train together, each with its share of `train.num_processes`; 1 trains on
    this machine."""
    gpu: bool = True
    """In the cluster, ask for a GPU for each worker and rank; without, for a core."""
    startup_timeout_minutes: Minutes = 15
    """How long to wait until the cluster has room for one."""

    @model_validator(mode="after")
    def _exists(self) -> Self:
        known = plugins.names("dreambooth_core.runtime.engines")
        if self.engine not in known:
            raise ValueError(
                f"compute.engine is unknown: {self.engine}; there is: {', '.join(known)}"
            )
        if self.nodes > 1 and self.engine == "local":
            raise ValueError("compute.nodes beyond 1 needs compute.engine: ray")
        return self

    @property
    def alone(self) -> bool:
        """Whether the process that wants images draws them itself."""
        return self.engine == "local" and self.workers == 1


def paths_here(paths: Paths) -> Paths:
    """A config's paths on a machine that works for others, apart from theirs where disks are shared.

    `DREAMBOOTH_WORK` there, or else a folder named like the machine.
    """
    own = paths.work / "machines" / socket.gethostname()
    return Paths(work=Path(os.environ.get(WORK) or own).resolve())
