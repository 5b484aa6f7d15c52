"""The Prefect server: whether it is well, and of the version of our client."""

import os
from collections.abc import Iterator

from dreambooth_core.servers.doctor import Finding, Server, Site, checked


def check(site: Site) -> Iterator[Finding]:
    """One finding."""
    yield checked(
        Server(
            name="prefect",
            url=site.prefect,
            health="/api/health",
            version="/api/admin/version",
            credentials=os.environ.get("PREFECT_API_AUTH_STRING", ""),
            remedy="set PREFECT_API_AUTH_STRING",
        )
    )
