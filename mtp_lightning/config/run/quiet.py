"""What Lightning prints at every start and nobody needs: advertisements, and which hardware is not there."""

import logging
import re

ADVERTISEMENTS = re.compile(
    r"💡 Tip: .*lit(logger|models)|(GPU|TPU) available: False|`Trainer\.fit` stopped: `max_steps="
)
"""Messages that are left out (the last one since `mtp fit` ends with its own); all others are shown."""


def without_advertisements() -> None:
    """Leave out these messages from now on; doing so again is fine."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(is_news)


def is_news(record: logging.LogRecord) -> bool:
    return record.levelno > logging.INFO or not ADVERTISEMENTS.match(record.getMessage())
