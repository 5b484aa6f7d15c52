"""The module of `Pointer` and `Served` in models that MLflow logged with an earlier version.

Such a model holds a copy of the file that serves it, which imports them from here.
"""

from dreambooth_core.registry.serving import Pointer, Served

__all__ = ["Pointer", "Served"]
