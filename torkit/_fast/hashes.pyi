"""The hashes that handshakes need, of secrets."""

__pyx_capi__: dict[str, object]  # the functions of hashes.pxd
