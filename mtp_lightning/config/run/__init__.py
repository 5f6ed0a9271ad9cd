"""A run from its start to its end: what is written when, when it may continue, what is printed."""
