"""Serves the clients of some listeners until cancelled."""

from collections.abc import Collection, Sequence

import trio

from torkit.net.proxy.isolation import ISOLATION, NEVER, Isolate, Isolation, Rotate
from torkit.net.proxy.leaks import Leaks
from torkit.net.proxy.limits import MAX_CLIENTS
from torkit.net.proxy.listener import StreamListener
from torkit.net.proxy.shared import Listener, Proxy
from torkit.net.proxy.sockdiag import SockDiag
from torkit.net.proxy.upstream import Ask, Resolve, Upstream
from torkit.proto.first_byte import AnyProtocol


async def serve_socks(
    listeners: Sequence[trio.SocketListener],
    *,
    request: Ask,
    resolve: Resolve,
    max_clients: int = MAX_CLIENTS,
    isolate: Collection[Isolate] = ISOLATION,
    names_only: bool = False,
) -> None:
    """Serve clients of SOCKS and HTTP until cancelled, and close the listeners: `serve_proxy` says how."""
    await serve_proxy(
        [StreamListener(listener.socket, lambda _: AnyProtocol()) for listener in listeners],
        upstream=Upstream(request, resolve),
        max_clients=max_clients,
        isolate=isolate,
        leaks=Leaks(names_only=names_only),
    )


async def serve_proxy(
    listeners: Sequence[Listener],
    *,
    upstream: Upstream,
    max_clients: int = MAX_CLIENTS,
    isolate: Collection[Isolate] = ISOLATION,
    rotate: Rotate = NEVER,
    leaks: Leaks | None = None,
    kernel: SockDiag | None = None,
    is_ending: trio.Event | None = None,
) -> None:
    """Serve the clients of all `listeners` until cancelled, and close the listeners.

    Once `is_ending` is set, no client is accepted any more, and this returns when the last one has left.

    Where there are `max_clients`, a new one takes the place of the one that has kept silent for longest. If
    all clients have said what they want, the new one waits. `isolate` says what keeps streams apart, and
    `rotate` when a new identity follows, for listeners without settings of their own. `leaks` deals with
    connections to addresses: their programs may have asked a resolver for a name. `kernel` is needed where
    the clients are in another network namespace.
    """
    async with trio.open_nursery() as nursery:
        proxy = Proxy(
            nursery,
            listeners,
            upstream,
            max_clients=max_clients,
            isolation=Isolation(isolate, rotate),
            leaks=leaks or Leaks(names_only=False),
            kernel=kernel or SockDiag(),
        )
        try:
            proxy.open()
            nursery.start_soon(proxy.run)
            await (trio.Event() if is_ending is None else is_ending).wait()
            await proxy.drain()
            nursery.cancel_scope.cancel()
        finally:
            proxy.close()
