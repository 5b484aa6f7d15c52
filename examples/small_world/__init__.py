"""The small world: a renderer, a base model and encoders trained on it, photos and a config."""

import dreambooth_core  # noqa: F401  # decides how OpenMP's threads wait, before torch is imported
