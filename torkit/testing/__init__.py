"""For tests of what speaks Tor, whose other side is scripted and misbehaves on command.

torkit.testing.relay        relays: links, circuits, streams
torkit.testing.directory    what they say of the network: consensus, microdescriptors, server descriptors
torkit.testing.onion        what they do for onion services; a service, and a client of one
"""

try:
    from cryptography.hazmat.primitives.asymmetric.utils import NoDigestInfo  # noqa: F401  # is it there?
except ImportError as error:
    raise ImportError(
        "torkit.testing needs cryptography 47 or newer: pip install 'torkit[testing]'"
    ) from error
