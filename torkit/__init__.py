"""torkit: a Tor client for shells and Python."""
