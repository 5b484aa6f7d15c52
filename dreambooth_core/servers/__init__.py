"""Servers: local S3 and Prefect, the stack of `dreambooth up`, its doctor, the metrics exporter."""
