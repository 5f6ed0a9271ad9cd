"""Checkpoints: their files, models out of them, and which one to resume from."""
