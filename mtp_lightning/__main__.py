"""`python -m mtp_lightning` is `mtp`."""

import sys

from mtp_lightning.cli import main

sys.exit(main())
