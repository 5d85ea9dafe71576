"""Onion services, version 3: names, keys, time periods, the ring of directories, descriptors.

Pure: bytes, time and randomness are arguments; nothing here connects. Imported only when an onion name is
used. rend-spec-v3; the constants' names are the specification's.
"""
