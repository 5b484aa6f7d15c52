"""Pretrained vision models (encoders, LPIPS, detectors, language models), crops and similarity."""
