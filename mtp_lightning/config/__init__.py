"""Configurations: YAML files and flags -> one checked configuration -> objects; and `mtp fit | validate`.

Read in this order: `config_files` (where files are found), `keys/` (which keys there are, who has set them),
`lightning_cli` (to objects), `cross_checks` (what has to go together), `commands`, `run/` (a run from its start to its
end); `one_config` and `many_configs` resolve without running, for grids; `cell` makes a cell's configuration.
"""
