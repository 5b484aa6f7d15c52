"""Aliases for MLflow models that an earlier version logged: their code imports these names from here."""

from dreambooth_core.registry.serving import ServedModel, ServedModelPointer

__all__ = ["ServedModel", "ServedModelPointer"]
