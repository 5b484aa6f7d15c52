"""Locations of local state and of the artifact store."""

from pathlib import Path
from typing import Self

from pydantic import model_validator

from dreambooth_core import plugins
from dreambooth_core.config.base import Address, Section


class Paths(Section):
    """Local folders."""

    work: Path = Path(".dreambooth")
    """Folder of all local state: stores, databases, checkpoints, reports."""


class Storage(Section):
    """Artifact store."""

    uri: Address = "s3://dreambooth/factory"
    """URI of the store: `s3://bucket/prefix` or `file:///absolute/folder`."""
    endpoint: Address | None = "local"
    """S3 endpoint URL; empty: AWS; `local`: start a SeaweedFS server in `paths.work` for the run."""

    @model_validator(mode="after")
    def _known_scheme(self) -> Self:
        scheme = self.uri.split("://", 1)[0]
        known = plugins.names("dreambooth_core.storage.stores")
        if "://" not in self.uri or scheme not in known:
            raise ValueError(f"storage.uri must start with one of {', '.join(known)}, then ://")
        endpoint = self.endpoint or "local"
        if endpoint != "local" and not endpoint.startswith(("http://", "https://")):
            raise ValueError(
                "storage.endpoint must be local, empty, or start with http:// or https://"
            )
        return self
