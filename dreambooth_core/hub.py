"""The Hugging Face Hub: which files are read, and the commit of a revision."""

import functools
from pathlib import Path

READ = ("*.json", "*.txt", "*.model", "*.jinja", "*.safetensors")
"""Patterns of the files that are downloaded of a model."""


@functools.cache
def pinned(source: str, revision: str | None) -> str | None:
    """The commit of a Hub id's revision; its files are in the local cache afterwards.

    Offline, the commit in the cache. `revision` itself for a folder, and for a revision that neither
    the Hub nor the cache has. Part of the ids of metrics: another commit is another metric.
    """
    if Path(source).is_dir():
        return revision
    from huggingface_hub import snapshot_download

    try:
        # .../snapshots/COMMIT
        return Path(snapshot_download(source, revision=revision, allow_patterns=[*READ])).name
    except (OSError, ValueError):
        return revision
