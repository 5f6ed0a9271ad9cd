"""Several corpora in one run: what they are, in which order their windows come, and how they are read."""
