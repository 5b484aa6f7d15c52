"""Diffusion models: families, base model, adapters, objectives, sampling, exports."""
