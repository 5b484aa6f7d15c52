"""Loading of the detectors' transformers models, from a folder or from the Hub at a pinned commit."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth_core.errors import ConfigError, ModelError, one_line

if TYPE_CHECKING:
    import torch

    from dreambooth_core import config

_COMMIT = re.compile(r"[0-9a-f]{40}")


def load_part(kind: Any, rules: "config.Detector", **options: Any) -> Any:
    """A network or processor by an `Auto...` class of transformers; runs no code of the repository.

    Raises `ConfigError` for a Hub id without its commit, `ModelError` when the part is missing.
    """
    if not Path(rules.model).is_dir() and not _COMMIT.fullmatch(rules.revision or ""):
        raise ConfigError(
            f"evaluation.detector.model {rules.model or '(none)'} is no folder, and as a Hub id needs "
            "evaluation.detector.revision: set it to the 40 hex digits of a commit"
        )
    try:
        return kind.from_pretrained(rules.model, revision=rules.revision, **options)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"no {rules.kind} at {rules.model}: set evaluation.detector.model to a folder or a Hub id "
            f"with its weights and preprocessor ({one_line(error, 200)})"
        ) from error


def load_model(kind: Any, rules: "config.Detector") -> Any:
    """The network in float32 and evaluation mode on `device()`; raises as `load_part` does."""
    import torch

    network = load_part(kind, rules, dtype=torch.float32, use_safetensors=True)
    return network.eval().to(device())


def device() -> "torch.device":
    """The GPU if available, else the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
