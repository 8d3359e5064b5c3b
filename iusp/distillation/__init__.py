"""Distillation losses, by which a student learns from a teacher in addition to labels. Each loss has its own module."""
