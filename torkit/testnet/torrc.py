"""The configuration of each tor process."""

import os
from collections.abc import Sequence
from pathlib import Path

from torkit.testnet.model import Options, Relay


def quoted(value: object) -> str:
    """Returns a value as tor reads it whole: a directory's name may hold what begins a comment."""
    escaped = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def common_torrc(directory: Path, authorities: Sequence[Relay], log_level: str) -> list[str]:
    return [
        "TestingTorNetwork 1",
        f"DataDirectory {quoted(directory / 'data')}",
        f"Log {quoted(f'{log_level} file {directory}/log')}",
        f"__OwningControllerProcess {os.getpid()}",
        # A network of loopback addresses has no countries; reading the maps costs each process half a second.
        "GeoIPFile /dev/null",
        "GeoIPv6File /dev/null",
        *(f"DirAuthority {dir_authority(authority)}" for authority in authorities),
    ]


def relay_torrc(
    relay: Relay,
    *,
    directory: Path,
    authorities: Sequence[Relay],
    options: Options,
    first_interval: int,
    first_valid_after: int,
) -> list[str]:
    """Returns the torrc of a relay of the network in `directory`.

    `first_interval`, seconds, is the authorities' voting interval until their first consensus, which becomes
    valid at `first_valid_after`, Unix time.
    """
    delay = 2 if options.voting_interval < 20 else 4  # tor wants vote + dist < interval / 2
    lines = [
        *common_torrc(relay.directory, authorities, options.log_level),
        f"Nickname {relay.nickname}",
        f"Address {relay.address}",
        f"OutboundBindAddress {relay.address}",
        f"ORPort {relay.address}:{relay.or_port} IPv4Only",
        "SocksPort 0",
        "AssumeReachable 1",
        "ShutdownWaitLength 0",
        "PathsNeededToBuildCircuits 0.67",
        f"ServerDNSResolvConfFile {quoted(directory / 'resolv.conf')}",
        "ServerDNSAllowBrokenConfig 1",
        "ServerDNSDetectHijacking 0",
        "ServerDNSTestAddresses",
        # Load tests come from one address.
        "DoSCircuitCreationEnabled 0",
        "DoSConnectionEnabled 0",
        "DoSStreamCreationEnabled 0",
    ]
    if relay.is_authority:
        lines += [
            "AuthoritativeDirectory 1",
            "V3AuthoritativeDirectory 1",
            f"DirPort {relay.address}:{relay.dir_port} IPv4Only",
            f"TestingV3AuthInitialVotingInterval {first_interval}",
            "TestingV3AuthInitialVoteDelay 2",
            "TestingV3AuthInitialDistDelay 2",
            f"TestingV3AuthVotingStartOffset {first_valid_after % first_interval}",
            f"V3AuthVotingInterval {max(options.voting_interval, first_interval)}",
            f"V3AuthVoteDelay {delay}",
            f"V3AuthDistDelay {delay}",
            "V3AuthNIntervalsValid 2",
            f"V3BandwidthsFile {quoted(directory / 'bandwidths')}",
            "TestingDirAuthVoteGuard *",
            "TestingDirAuthVoteHSDir *",
            "AuthDirVoteStableGuaranteeMinUptime 1 second",  # without, half of the relays are Stable, by luck
            "TestingMinExitFlagThreshold 0",
        ]
    lines += options.torrc.get(relay.nickname, ())
    if relay.is_exit:
        # 0.0.0.0/8 is refused by every exit of the public network: clients probe circuits so.
        policy = ("reject 0.0.0.0/8:*", "accept private:*", "accept *:*")
        return [*lines, "ExitRelay 1", *(f"ExitPolicy {rule}" for rule in policy)]
    return [*lines, "ExitRelay 0", "ExitPolicy reject *:*"]


def dir_authority(authority: Relay) -> str:
    """Returns the value of torrc's DirAuthority."""
    return (
        f"{authority.nickname} orport={authority.or_port} no-v2 v3ident={authority.v3ident} "
        f"{authority.address}:{authority.dir_port} {authority.fingerprint}"
    )
