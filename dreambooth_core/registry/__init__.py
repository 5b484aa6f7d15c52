"""Registered model versions: what each comes from, is called and is served by, and who is in service."""
