"""What the circuits of one client have in common."""

from collections.abc import Mapping

from torkit.net.journal import Journal
from torkit.proto import flow
from torkit.proto.circuit import Cgo


class CircuitSettings:
    """What the circuits of one client share: `params` are the consensus's; `half_open_time`, in seconds, is
    how long data may still arrive for a stream that we closed (the build timeout of circuits). With
    `refuse_internal`, addresses internal to some network are no answer of an exit's. `journal` is told what
    happens to circuits and streams."""

    def __init__(
        self,
        params: Mapping[str, int] | None = None,
        cgo: Cgo = Cgo.EXIT,
        clock: flow.ClockGuard | None = None,
        half_open_time: float = 60.0,
        refuse_internal: bool = False,
        journal: Journal | None = None,
    ) -> None:
        self.params = params or {}
        self.stream_params = flow.StreamParams.from_params(self.params)
        self.congestion_params = {
            path: flow.CongestionParams.from_params(self.params, path) for path in flow.PathKind
        }
        self.cgo = cgo
        self.clock = clock or flow.ClockGuard()
        self.half_open_time = half_open_time
        self.refuse_internal = refuse_internal
        self.journal = journal or Journal()
