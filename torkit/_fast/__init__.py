"""The compiled core: a whole TLS read in; per-stream bytes and rare events out."""
