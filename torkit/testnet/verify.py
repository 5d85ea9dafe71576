"""Looks at a running network from outside and sends traffic through it."""

import tempfile
from datetime import UTC, datetime
from pathlib import Path

import trio

from torkit.errors import TorkitError
from torkit.testnet.model import Check
from torkit.testnet.network import CLIENT_DEADLINE, Testnet
from torkit.testnet.processes import tor_processes
from torkit.testnet.ready import fetch_consensus
from torkit.testnet.services import fetch_over_socks, serve_page


async def verify(net: Testnet) -> list[Check]:
    """Look at a running network from outside and send traffic through it. Never raises for what it finds."""
    checks = []
    running = set(tor_processes(net.directory))
    dead = [relay.nickname for relay in net.relays if relay.pid not in running]
    total = len(net.relays)
    checks.append(
        Check(
            "processes",
            not dead,
            f"not running: {', '.join(dead)}" if dead else f"all {total} tor processes run",
        )
    )
    now = datetime.now(UTC)
    for authority in net.authorities:
        consensus = await fetch_consensus(authority)
        name = f"consensus of {authority.nickname}"
        if consensus is None:
            checks.append(Check(name, False, "not served"))
        elif not consensus.valid_after <= now < consensus.valid_until:
            checks.append(
                Check(name, False, f"not valid now: {consensus.valid_after} to {consensus.valid_until}")
            )
        elif missing := consensus.missing(net.relays):
            checks.append(Check(name, False, f"lacks {missing}"))
        else:
            detail = f"lists all {total} relays, {consensus.signatures} signatures"
            checks.append(Check(name, True, f"{detail}, valid until {consensus.valid_until:%H:%M:%S} UTC"))
    checks.append(await _verify_traffic(net))
    return checks


async def _verify_traffic(net: Testnet) -> Check:
    """Fetch a page by name through three hops, with a C tor client of our own."""
    with serve_page() as (port, page), tempfile.TemporaryDirectory(prefix="torkit-verify-") as scratch:
        # The client is ours, not the network's: its files are elsewhere and it ends with this check.
        visitor = Testnet(Path(scratch), net.options, dns_port=net.dns_port)
        visitor.relays = net.relays
        try:
            socks = await visitor.start_client()
            started = trio.current_time()
            with trio.fail_after(CLIENT_DEADLINE):
                reply = await fetch_over_socks(socks, "web.test", port)
        except (TorkitError, trio.TooSlowError, OSError, trio.BrokenResourceError) as error:
            return Check("traffic", False, str(error) or "no reply in time")
        finally:
            await visitor.close()
    if reply != page:
        return Check("traffic", False, f"expected the page just made, got {len(reply)} other bytes")
    return Check(
        "traffic", True, f"a page by name through three hops in {trio.current_time() - started:.2f} s"
    )
