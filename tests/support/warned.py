"""What torkit has warned of."""

import pytest


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """But for the pump's, which are of a busy machine: everything stood still."""
    return [
        record.message
        for record in caplog.records
        if record.levelname == "WARNING" and record.name != "torkit.net.link.pump"
    ]
