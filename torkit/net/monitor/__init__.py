"""What a running client tells of itself: to metrics, to health checks, to `torkit status`.

    status.py      a moment of it, looked at when somebody asks; costs nothing otherwise
    tally.py       counts what has happened, from events; only while somebody wants it
    exposition.py  both as Prometheus text
    health.py      whether circuits work
    pages.py       a small HTTP server for these

None of it names a destination. What may be read on other machines names no relay either.
"""
