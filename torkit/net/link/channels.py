"""The channels in use, one for each relay: all circuits through a relay share its connection."""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from random import Random

import trio

from torkit.errors import ChannelClosed, TimedOut, TorkitError
from torkit.net.contact import Contact, name_of, or_addresses
from torkit.net.link.channel import Channel
from torkit.net.link.dial import Dial, dial_directly
from torkit.net.progress import Phase, Tracker, furthest
from torkit.proto.padding import LinkPadding, Padding, idle_timeout

# Seconds after which a channel takes no new circuits (as C tor's).
MAX_AGE = 7 * 86400.0

logger = logging.getLogger(__name__)


class Channels:
    """Opens, shares, pads and expires channels, in tasks of `nursery`. `params` are the consensus's.

    `dial` opens the sockets; `progress` is told when one connects and when TLS begins.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        rng: Random,
        *,
        padding: Padding = Padding.AUTO,
        params: Callable[[], Mapping[str, int]] = dict,
        progress: Tracker | None = None,
        dial: Dial = dial_directly,
    ) -> None:
        self._nursery = nursery
        self._rng = rng
        self._padding = padding
        self._params = params
        self._progress = progress or Tracker()
        self._dial = dial
        self._open: dict[bytes, Channel] = {}
        self._opening: dict[bytes, trio.Event] = {}
        self.running: set[Channel] = set()  # also channels that take no new circuits

    def find(self, relay: Contact) -> Channel | None:
        """Returns the channel to `relay`, None where there is none that takes new circuits."""
        channel = self._open.get(relay.identity)
        if channel is None or channel.error is not None or not _is_to(channel, relay):
            return None
        return channel if trio.current_time() - channel.opened_at < MAX_AGE else None

    async def get(self, relay: Contact) -> Channel:
        """Returns the channel to `relay`, a new one if there is none. Raises what Channel.connect raises."""
        key = relay.identity
        while key in self._opening:
            await self._opening[key].wait()
        if (found := self.find(relay)) is not None:
            return found
        opened = self._opening[key] = trio.Event()
        try:
            try:
                channel = self._open[key] = await self._connect(relay)
            except TorkitError as error:
                logger.debug("no connection to %s: %s", name_of(relay), error)
                raise
            logger.debug("connected to %s, link protocol %d", name_of(relay), channel.link.link_protocol)
            padding = LinkPadding(self._padding, link_protocol=channel.link.link_protocol, rng=self._rng)
            for command, body in padding.start():
                channel.send_control(0, command, body)
            self._nursery.start_soon(self._keep, relay, channel, padding)
        finally:
            del self._opening[key]
            opened.set()
        return channel

    def is_open(self, relay: Contact) -> bool:
        """Returns whether `get` would give a channel at once."""
        return self.find(relay) is not None

    def forget(self, relay: Contact) -> None:
        """Let the next `get` connect anew. The present channel stays as long as it has circuits."""
        self._open.pop(relay.identity, None)

    def forget_all(self) -> None:
        """Let every next `get` connect anew."""
        self._open.clear()

    async def drain(self) -> None:
        """Wait until everything sealed so far has been sent."""
        for channel in list(self._open.values()):
            await channel.drain()

    async def _connect(self, relay: Contact) -> Channel:
        failures: list[TorkitError] = []
        for address, port in or_addresses(relay):
            self._progress.reach(Phase.CONN)
            try:
                return await Channel.connect(
                    str(address),
                    port,
                    rsa=relay.identity,
                    ed25519=relay.ed25519_identity,
                    rng=self._rng,
                    on_connected=partial(self._progress.reach, Phase.HANDSHAKE),
                    dial=self._dial,
                )
            except (ChannelClosed, TimedOut) as error:
                failures.append(error)
        try:
            raise furthest(failures)
        finally:
            del failures  # the error's traceback holds this call

    async def _keep(self, relay: Contact, channel: Channel, padding: LinkPadding) -> None:
        """Run a channel until it ends or has long had no circuit."""
        self.running.add(channel)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._expire, relay, channel, nursery.cancel_scope)
            nursery.start_soon(self._pad, channel, padding)
            await channel.run()
            nursery.cancel_scope.cancel()
        self.running.discard(channel)
        logger.debug("the connection to %s is over: %s", name_of(relay), channel.error)
        self._take_out(relay, channel)

    def _take_out(self, relay: Contact, channel: Channel) -> None:
        """Give `channel` to nobody any more."""
        if self._open.get(relay.identity) is channel:
            del self._open[relay.identity]

    async def _expire(self, relay: Contact, channel: Channel, scope: trio.CancelScope) -> None:
        timeout = idle_timeout(self._padding, self._rng)
        while True:
            idle_since = channel.idle_since
            wake_at = timeout + (trio.current_time() if idle_since is None else idle_since)
            if wake_at <= trio.current_time():
                self._take_out(relay, channel)  # it ends only when its own task has run
                scope.cancel()
                return
            await trio.sleep_until(wake_at)

    async def _pad(self, channel: Channel, padding: LinkPadding) -> None:
        """Send PADDING when it is due, until the channel ends."""
        while channel.error is None:
            look_at = padding.look(
                trio.current_time(), active_at=channel.active_at, use=channel.use, params=self._params()
            )
            if look_at is None:
                await channel.send_padding()
                continue
            with trio.move_on_at(look_at):
                await channel.wait_used_more()


def _is_to(channel: Channel, relay: Contact) -> bool:
    """Returns whether a channel leads to `relay`, whose Ed25519 identity may be unknown."""
    return relay.ed25519_identity in (None, channel.link.peer.ed25519)
