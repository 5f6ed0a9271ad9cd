"""What models can do: benchmarks, the sandbox in which their programs run, and the figures made of the outcomes."""
