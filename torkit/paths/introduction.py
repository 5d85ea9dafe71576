"""Which relays introduce clients to a service of ours."""

from collections.abc import Collection
from random import Random

from torkit.directory.directory import Directory, Relay, supports
from torkit.errors import NoPath
from torkit.paths.choose import draw_middle
from torkit.paths.constraints import Constraints

# Implementation limit: relays drawn until one can be an introduction point, as nearly all can.
MAX_DRAWS = 64


def choose_introduction_point(
    directory: Directory, unwanted: Collection[bytes], constraints: Constraints, rng: Random
) -> Relay:
    """A stable relay by bandwidth, none of `unwanted`, identities of 20 bytes. Raises NoPath.

    rend-spec-v3, "Picking introduction points"; families and subnets do not count.
    """
    for _ in range(MAX_DRAWS):
        relay = draw_middle(directory, constraints._replace(stable=True), unwanted, rng)
        knows_keys = relay.ed25519_identity is not None
        if knows_keys and "MiddleOnly" not in relay.flags and supports(relay, "HSIntro", 4):
            return relay
    raise NoPath("no relay that was drawn can be an introduction point")
