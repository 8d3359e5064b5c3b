"""The loader that registered versions name. MLflow imports it by this name, so the name must never change."""

from iusp.registry.serving import _load_pyfunc

__all__ = ["_load_pyfunc"]
