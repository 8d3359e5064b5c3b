"""The loader that registered versions name: MLflow imports it by this name for as long as a version lives."""

from iusp.registry.serving import _load_pyfunc

__all__ = ["_load_pyfunc"]
