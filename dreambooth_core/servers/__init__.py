"""Servers: local S3 and Prefect, the stack of `dreambooth up`, `dreambooth doctor`, metrics exporter."""
