"""Model folders in diffusers' format: their JSON files, read with a size limit."""

import json
from pathlib import Path
from typing import Any

from dreambooth_core.errors import ModelError, one_line

CONFIG_BYTES = 2**20
"""Size limit of `model_index.json` and of a component's config; usual files have a few KiB."""


def model_index(folder: Path) -> dict[str, str]:
    """Component -> class name from `model_index.json`, and the pipeline's class as `pipeline`.

    The class is empty for an omitted component. Raises `ModelError` for a missing or invalid file.
    """
    index = folder / "model_index.json"
    if not index.exists():
        raise ModelError(
            f"{folder} is not a model in diffusers' format: it has no model_index.json; "
            "set model.base to a folder that has one, or to a Hub id"
        )
    entries = read_config(index)
    # [library, class]; some pipelines also store lists of numbers
    classes = {
        name: str(entry[1] or "")
        for name, entry in entries.items()
        if isinstance(entry, list) and len(entry) == 2
    }
    return {"pipeline": str(entries.get("_class_name")), **classes}


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object from a file in a model folder; raises `ModelError` for anything else."""
    try:
        if not path.is_file() or path.stat().st_size > CONFIG_BYTES:
            raise ModelError(
                f"{path} must be a file of at most {CONFIG_BYTES} bytes, as a model's configs are; "
                "fetch the model again"
            )
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{path} is not readable JSON ({one_line(error, 200)}); fetch the model again"
        ) from error
    if not isinstance(document, dict):
        kind = type(document).__name__
        raise ModelError(f"{path} holds a {kind}, not a JSON object; fetch the model again")
    return document
