"""Log-mel spectra of the recordings: computed, packed and augmented. It knows no networks."""
