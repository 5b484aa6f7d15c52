"""Sampling jobs: many images of trained models, drawn in shards, published as galleries."""
