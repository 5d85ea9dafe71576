"""Directory documents from the network.

fetch    asks for one document, over a stream
servers  whom to ask, one after another
keeper   keeps the directory: from the cache, then from the network, then ever newer
steps    takes long work in steps, between which others have their turns
"""
