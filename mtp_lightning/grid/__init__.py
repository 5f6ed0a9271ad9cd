"""A YAML grid becomes cells, cells become runs, runs become a report.

Read in this order:

    commands.py           every command of `mtp grid`, a method of `Grid`
    spec/grid_spec.py     the file, read and checked (`reader.py` section by section, `resources.py`, `grid_file.py`)
    spec/settings.py      its combinations of values, with `expressions.py` to exclude some
    spec/cells.py         its cells: each combination and seed, with its full configuration
    spec/signature.py     a cell's identity
    run/state.py          a cell's folder, and the state that follows from it
    run/process.py        one attempt at one cell; `launch.py` runs many, `display.py` and `logs.py` show them
    run/status.py         the status of every cell; `plan.py` what would be done and what it costs
    slurm/submit.py       cells as job arrays; `submissions.py` their record, `client.py` Slurm's programs,
                          `snapshot.py` the code that jobs run, `job.py` what runs on the nodes
    report/comparison.py  the comparison; the other files of `report/` show it

Nothing here imports torch, Lightning or MLflow until it is needed: `mtp grid --help` must be quick.
"""
