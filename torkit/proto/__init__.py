"""Sans-IO protocol: bytes and values in, bytes and values out. No trio, sockets, clock or randomness."""
