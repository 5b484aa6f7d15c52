"""DreamBooth as a pipeline: the domain, in plain Python."""

import logging
import os

__version__ = "0.1.0"

# OpenMP's threads spin while they wait for each other. On a machine that does anything else at the
# same time one of them is always late, and a training step took ten times as long (5.0 s instead of
# 0.4 s on two cores with one other busy process). Read when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# torchao says at every import, which diffusers does for us, that its GPU kernels do not load here.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
