"""Code that travels in exported folders, for `transformers` alone: nothing here imports this package, or is imported by
it. `export_folder` copies the files."""
