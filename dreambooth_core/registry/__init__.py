"""Registered model versions: registration, aliases, promotion, lineage, cards, serving."""
