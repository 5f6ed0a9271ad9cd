"""Where runs are recorded: MLflow. Importing this costs nothing; MLflow itself loads when it is first used."""

import os

# MLflow decides when it is imported whether it reports its use to its makers.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
