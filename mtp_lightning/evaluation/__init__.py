"""What a model can do: benchmarks, samples on disk, code that runs in a sandbox."""
