"""`python -m mtp_lightning` is `mtp`."""

import sys

from mtp_lightning.own_code import put_working_directory_last

put_working_directory_last()  # before the next import: a user's own `inspect.py` is not Python's

from mtp_lightning.cli import main  # noqa: E402

sys.exit(main())
