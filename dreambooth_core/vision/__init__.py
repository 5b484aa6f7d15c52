"""Pretrained models that look at images: encoders, LPIPS, detectors, language models."""
