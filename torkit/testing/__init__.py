"""For tests of what speaks Tor: relays that are scripted, and misbehave on command (torkit.testing.relay)."""
