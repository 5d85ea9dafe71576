"""Makes the keys of relays and authorities, by tor and tor-gencert."""

import os
import re
from collections.abc import Sequence

import trio

from torkit.errors import NotPossible
from torkit.testnet.model import Relay
from torkit.testnet.processes import find_program, last_complaint, tor_command


async def make_keys(relays: Sequence[Relay]) -> None:
    """Make the keys of `relays` and note their identities.

    An authority's RSA key takes seconds: as many keys are made at once as there are processors.
    Raises NotPossible where tor or tor-gencert fails.
    """
    limit = trio.CapacityLimiter(os.cpu_count() or 1)
    failures: list[str] = []

    async def run(command: list[str], stdin: bytes = b"") -> None:
        async with limit:
            result = await trio.run_process(
                command, stdin=stdin, capture_stdout=True, capture_stderr=True, check=False
            )
        if result.returncode != 0:
            failures.append(last_complaint(result.stdout + result.stderr))

    async with trio.open_nursery() as nursery:
        for relay in sorted(relays, key=lambda relay: not relay.is_authority):  # the slow ones first
            keys = relay.data_directory / "keys"
            if relay.is_authority:
                keys.mkdir(mode=0o700)
                nursery.start_soon(
                    run,
                    [
                        *(find_program("tor-gencert"), "--create-identity-key", "-m", "12"),
                        *("-i", f"{keys}/authority_identity_key", "-s", f"{keys}/authority_signing_key"),
                        *("-c", f"{keys}/authority_certificate", "--passphrase-fd", "0"),
                    ],
                    b"torkit\n",
                )
            nursery.start_soon(
                run,
                [
                    *tor_command(relay.directory),
                    *("--DataDirectory", str(relay.data_directory), "--Nickname", relay.nickname),
                    *("--ORPort", "1", "--DisableNetwork", "1", "--list-fingerprint"),
                ],
            )
    if failures:
        raise NotPossible(f"making relay keys failed: {failures[0]}")
    for relay in relays:
        relay.fingerprint = (relay.data_directory / "fingerprint").read_text().split()[1]
        relay.ed25519 = (relay.data_directory / "fingerprint-ed25519").read_text().split()[1]
        if relay.is_authority:
            certificate = (relay.data_directory / "keys/authority_certificate").read_text()
            found = re.search(r"^fingerprint ([0-9A-F]{40})$", certificate, re.MULTILINE)
            if found is None:
                raise NotPossible("tor-gencert wrote a certificate without a fingerprint")
            relay.v3ident = found[1]
