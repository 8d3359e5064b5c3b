"""Log-mel spectra of the recordings: computed, packed, augmented; never a network."""
