"""Recordings and their annotations: audio files, labels, taxonomy; never a spectrum or a network."""
