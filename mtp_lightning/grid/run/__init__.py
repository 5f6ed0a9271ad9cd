"""Cells on this machine: processes, their state, what they cost."""
