"""Bytes to and from a relay, as cells.

dial      the only place that opens a socket to a relay
tls       the TLS connection on that socket
channel   the link handshake, then cells, each to its circuit
channels  one channel for each relay, shared by all circuits
pump      moves the bytes of all sockets while trio would sleep
"""
