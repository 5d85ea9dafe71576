"""Files shared as a page, or received by one: what `torkit onion share` serves. Knows nothing of Tor.

tree.py, archive.py      what is shared, and all of it as one zip file
inbox.py, form.py        where uploads go, and how they come
transfers.py             what is under way, for whoever shares; what has been fetched as a whole
pages.py                 what people see
app.py                   answers to requests, over Starlette
server.py                a Unix socket that nobody else reaches, with Hypercorn behind it
"""
