"""DreamBooth fine-tuning in plain Python, without Prefect; docs/api.md documents the exported names."""

import logging
import os
from typing import TYPE_CHECKING, Any

from dreambooth_core.threads import choose_wait_policy

if TYPE_CHECKING:
    from dreambooth_core.api import export, load_config, sample, train, validate
    from dreambooth_core.config import Config

__all__ = ["Config", "export", "load_config", "sample", "train", "validate"]
__version__ = "0.1.0"

choose_wait_policy(os.environ)

# diffusers imports torchao, which warns at every import when its GPU kernels cannot be loaded
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)


def __getattr__(name: str) -> Any:
    """Import the API at its first use: submodules are imported without it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from dreambooth_core import api

    return getattr(api, name)
