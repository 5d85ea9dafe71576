"""A running client, as metrics, health checks and `torkit status` show it.

    status.py      the state at one moment, made when somebody asks; costs nothing otherwise
    tally.py       counts events, only while somebody wants it
    exposition.py  both as Prometheus text
    health.py      whether circuits work
    pages.py       a small HTTP server for these

None of it names a destination. What may be read on other machines names no relay either.
"""
