"""Lightning callbacks, one a file, wired by `class_path` in YAML; none imports another."""
