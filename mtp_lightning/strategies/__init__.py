"""How a run is spread over processes, and what each way needs to compute the same as a single process."""
