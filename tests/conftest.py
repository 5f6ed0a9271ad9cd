"""Tests record where they say, whatever the environment they are started in says."""

import os

os.environ.pop("MLFLOW_TRACKING_URI", None)
