"""Configurations: YAML files and flags -> one checked configuration -> objects; and `mtp fit | validate`."""
