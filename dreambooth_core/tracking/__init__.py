"""Experiment tracking: MLflow runs, learning curves, TensorBoard and Weights & Biases."""
