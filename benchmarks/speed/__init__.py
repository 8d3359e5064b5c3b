"""Measurements of time and memory, for docs/performance.md and docs/scale.md."""
