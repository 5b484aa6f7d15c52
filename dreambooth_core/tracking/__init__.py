"""MLflow and other trackers of training runs."""
