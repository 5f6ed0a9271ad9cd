"""A YAML grid becomes cells, cells become runs, runs become a report.

Read in this order: `spec` (the file), `cells` (its expansion), `signature` (a cell's identity), `state` (a cell's
folder), `launch` (one process a cell), `report` (the comparison), `commands` (what `mtp grid` calls).
Nothing here imports torch, Lightning or MLflow until it is needed: `mtp grid --help` must be quick.
"""
