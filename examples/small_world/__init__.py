"""The small world: a renderer, a base model and encoders trained on it, photos and a config."""
