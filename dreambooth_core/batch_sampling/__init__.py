"""Orders of images: out of trained models, in shards, into galleries."""
