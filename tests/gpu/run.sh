#!/usr/bin/env bash
# What only a GPU can check, in at most 8 minutes on one H100 or H200: a JSON line a check, exit status 1 if one failed.
#   tests/gpu/run.sh [--device cpu] [--only NAME ...]      (cpu: the same code at tiny sizes, no figures)
set -euo pipefail
cd "$(dirname "$0")/../.."
export MLFLOW_DISABLE_TELEMETRY=true PYTHONPATH="$PWD:$PWD/tests/unit${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-.venv/bin/python}" tests/gpu/checks.py "$@"
