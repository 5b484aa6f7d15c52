"""What the finders load: models of transformers, from a folder, or from the Hub at a pinned commit."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth_core.errors import ConfigError, ModelError, one_line

if TYPE_CHECKING:
    import torch

    from dreambooth_core import config

_COMMIT = re.compile(r"[0-9a-f]{40}")


def load_part(kind: Any, rules: "config.Detector", **options: Any) -> Any:
    """One part of the finder's model by an `Auto...` class of transformers; safetensors, no code.

    Raises `ConfigError` for a Hub id without its commit, `ModelError` when there is no such part.
    """
    if not Path(rules.model).is_dir() and not _COMMIT.fullmatch(rules.revision or ""):
        raise ConfigError(
            f"there is no folder {rules.model or '(none)'} for evaluation.finder.model, and as a Hub id it "
            "needs finder.revision, the 40 hex digits of a commit, so that the same config finds the same"
        )
    try:
        return kind.from_pretrained(rules.model, revision=rules.revision, **options)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"no {rules.kind} that could find the subject at {rules.model}: name a folder or a Hub id with "
            f"its weights and its preprocessor ({one_line(error, 200)})"
        ) from error


def load_model(kind: Any, rules: "config.Detector") -> Any:
    """The network in float32, for evaluation, where it runs fastest; raises as `load_part` does."""
    import torch

    network = load_part(kind, rules, dtype=torch.float32, use_safetensors=True)
    return network.eval().to(device())


def device() -> "torch.device":
    """Where finders run."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
