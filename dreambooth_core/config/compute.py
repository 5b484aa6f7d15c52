"""Processes and machines of a run."""

import os
import socket
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from dreambooth_core import plugins
from dreambooth_core.config.base import Minutes, Positive, Section
from dreambooth_core.config.storage import Paths

WORK = "DREAMBOOTH_WORK"
"""Environment variable: work folder of serving and Ray worker processes, instead of `paths.work`."""


def _list_engines(schema: dict[str, Any]) -> None:
    """Add the engines as an enum, which forms show as a drop-down."""
    schema["enum"] = plugins.names("dreambooth_core.runtime.engines")


class Compute(Section):
    """Processes and machines that generate images and train; without effect on results."""

    engine: Annotated[str, Field(json_schema_extra=_list_engines)] = "local"
    """`local`: this machine; `ray`: a Ray cluster. A file of `dreambooth_core/runtime/engines/`."""
    workers: Positive = 1
    """Parallel processes that generate class images, evaluation images and samples."""
    nodes: Positive = 1
    """Machines of the cluster that train together, each with an equal share of `train.num_processes`; 1: this
    machine."""
    gpu: bool = True
    """Request one GPU of the cluster per worker and rank; false: one CPU core."""
    startup_timeout_minutes: Minutes = 15
    """Minutes to wait for free resources of the cluster."""

    @model_validator(mode="after")
    def _exists(self) -> Self:
        known = plugins.names("dreambooth_core.runtime.engines")
        if self.engine not in known:
            raise ValueError(
                f"compute.engine is unknown: {self.engine}; choose from: {', '.join(known)}"
            )
        if self.nodes > 1 and self.engine == "local":
            raise ValueError("compute.nodes beyond 1 needs compute.engine: ray")
        return self

    @property
    def alone(self) -> bool:
        """Whether images are generated in the calling process, without workers."""
        return self.engine == "local" and self.workers == 1


def paths_here(paths: Paths) -> Paths:
    """A config's paths on a worker machine: `DREAMBOOTH_WORK`, else `machines/<host name>` below theirs.

    Hosts that share a disk thus have separate folders.
    """
    own = paths.work / "machines" / socket.gethostname()
    return Paths(work=Path(os.environ.get(WORK) or own).resolve())
