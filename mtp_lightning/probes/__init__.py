"""Measurements of a model: pure functions from model and batch to numbers."""
