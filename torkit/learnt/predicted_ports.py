"""Predicts the ports of coming streams: those used in the last 30 to 60 minutes.

path-spec, "Clients build circuits preemptively".
Pure: time, randomness and the consensus's parameters are arguments. Nothing of this is ever written down.
"""

from __future__ import annotations

from random import Random

from torkit.params import Param, default_param

# Expected at the start (as C tor; path-spec says 80).
FIRST_PORT = 443

# A look-up is taken for a stream to the web (as C tor).
RESOLVE_PORT = 80

# Implementation limit: a scan through the proxy shall not fill the memory with its ports.
MAX_PORTS = 64


class PredictedPorts:
    """Callers tell with `note` which ports were asked for. Each is expected for 30 to 60 minutes.

    How long exactly is drawn anew whenever nothing is expected, so that whoever sees circuits no longer
    being built cannot tell when the last stream began.
    """

    def __init__(self, param: Param = default_param) -> None:
        self._param = param
        self._asked: dict[int, float] = {}  # when each was last, the longest ago first
        self._lifetime = 0.0

    def note(self, port: int, *, now: float, rng: Random) -> bool:
        """Note that somebody asked for `port`. Returns whether the port had not been expected."""
        self._forget_old(now)
        if not self._asked:
            least = self._param("nf_conntimeout_clients")
            self._lifetime = least + rng.randrange(least)
        is_new = self._asked.pop(port, None) is None
        self._asked[port] = now
        if len(self._asked) > MAX_PORTS:
            del self._asked[next(iter(self._asked))]
        return is_new

    def forget(self, port: int) -> None:
        """Expect `port` no more: no exit lets streams go there."""
        self._asked.pop(port, None)

    def ports(self, now: float) -> list[int]:
        """Returns the ports that are expected, the one last asked for first."""
        self._forget_old(now)
        return list(reversed(self._asked))

    def seconds_left(self, now: float) -> float:
        """Returns the seconds until no port is expected any more, if nobody asks."""
        self._forget_old(now)
        return max(self._asked.values(), default=now - self._lifetime) + self._lifetime - now

    def _forget_old(self, now: float) -> None:
        while self._asked:
            oldest = next(iter(self._asked))
            if self._asked[oldest] + self._lifetime >= now:
                return
            del self._asked[oldest]
