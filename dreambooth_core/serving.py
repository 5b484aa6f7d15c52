"""The module of `ServedModelPointer` and `ServedModel` in models that MLflow logged with an earlier version.

Such a model holds a copy of the file that serves it, which imports them from here.
"""

from dreambooth_core.registry.serving import ServedModel, ServedModelPointer

__all__ = ["ServedModel", "ServedModelPointer"]
