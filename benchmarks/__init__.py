"""Measurements: they write result pages and figures, and no part of the library imports them."""
