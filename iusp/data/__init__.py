"""Recordings and their annotations: audio files, clips, labels, taxonomy. It knows no spectra or networks."""
