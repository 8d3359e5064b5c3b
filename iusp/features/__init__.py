"""Log-mel spectra of the recordings: computed, packed and augmented. Independent of the networks."""
