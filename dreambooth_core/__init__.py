"""DreamBooth as a pipeline: the domain, in plain Python."""

import logging
import os

from dreambooth_core.threads import choose_wait_policy

__version__ = "0.1.0"

choose_wait_policy(os.environ)

# torchao says at every import, which diffusers does for us, that its GPU kernels do not load here.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
