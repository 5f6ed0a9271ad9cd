"""Which documents of a corpus are trained on: scores, choices, and corruptions that a score has to see."""
