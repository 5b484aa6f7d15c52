"""The small world: a renderer, a base model and encoders trained on it, photos and a config."""

import dreambooth_core  # noqa: F401  # sets OpenMP's thread policy before torch is imported
