"""Where runs are recorded: MLflow. Importing this costs nothing; MLflow itself loads when it is first used."""

import os

# MLflow decides when it is imported whether it reports its use to its makers.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
# Its client retries a server that is away for minutes, in which training would stand still. Here `with_patience`
# does that: it knows where a run can go on without the server.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
# Two links at the end of each run, between a command's own results; `mtp` prints its own.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
