"""Where the tasks of a run on several nodes meet: at task 0's node, under the address that Slurm itself reaches it by.

Lightning takes the first name of SLURM_NODELIST, which other nodes need not be able to resolve.
"""

import os
import subprocess

VARIABLE = "MASTER_ADDR"
_SECONDS = 30.0


def own_address() -> str:
    """Of the node that this process runs on; what MASTER_ADDR says comes first."""
    if given := os.environ.get(VARIABLE):
        return given
    node = os.environ["SLURMD_NODENAME"]
    try:
        done = subprocess.run(
            ["scontrol", "show", "node", node, "--oneliner"], capture_output=True, text=True, timeout=_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):  # a node without Slurm's clients, or a controller that is away
        return node
    said = dict(word.split("=", 1) for word in done.stdout.split() if "=" in word)
    return said.get("NodeAddr", node)
