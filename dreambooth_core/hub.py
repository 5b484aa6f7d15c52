"""The Hugging Face Hub: which files are read, and the commit of a revision."""

import functools
from pathlib import Path

READ = ("*.json", "*.txt", "*.model", "*.jinja", "*.safetensors")
"""Files that are read of a model; nothing else is fetched."""


@functools.cache
def pinned(source: str, revision: str | None) -> str | None:
    """The commit where a Hub id's revision stands, so that scores of another one have other names.

    What is read of it is in the Hub's cache then, as training, which looks with it, may not ask the
    Hub. Out of the Hub's reach the cache says; `revision` itself where neither knows it, and for a
    folder.
    """
    if Path(source).is_dir():
        return revision
    from huggingface_hub import snapshot_download

    try:
        # .../snapshots/COMMIT
        return Path(snapshot_download(source, revision=revision, allow_patterns=[*READ])).name
    except (OSError, ValueError):
        return revision
