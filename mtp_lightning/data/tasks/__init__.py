"""Synthetic tasks: examples made while training, and test questions kept apart."""
