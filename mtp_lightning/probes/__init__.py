"""Questions to a model: pure functions from model and batch to numbers."""
