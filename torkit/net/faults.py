"""Tells of faults of ours."""

import logging

from torkit.errors import InternalError, trace

logger = logging.getLogger(__name__)


def log_fault(fault: InternalError) -> None:
    """Warn of a fault of ours, and log at DEBUG where it was. The exception's own words are not logged."""
    logger.warning("%s", fault)
    if logger.isEnabledFor(logging.DEBUG):
        logger.debug("%s", trace(fault))
