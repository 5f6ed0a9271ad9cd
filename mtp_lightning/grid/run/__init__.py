"""Cells on this machine: their processes, their state, what they cost."""
