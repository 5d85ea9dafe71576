"""The private network of a session's tests: torkit's own, and which of its relays says more."""

from torkit.testnet.in_thread import RunningTestnet, running_testnet

__all__ = ["WATCHED", "RunningTestnet", "running_testnet"]

WATCHED = "middle2"  # the relay of the session's network that logs more; see conftest.py
