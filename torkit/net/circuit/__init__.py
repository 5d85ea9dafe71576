"""One circuit and what it carries. Which circuits there are, and for whom: net/circuits/.

circuit   its hops, their handshakes and its end
stream    one stream on it, as trio has streams
"""
