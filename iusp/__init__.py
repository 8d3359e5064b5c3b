"""Intra-utterance similarity preserving knowledge distillation for urban sound tagging."""

__version__ = "0.1.0"
