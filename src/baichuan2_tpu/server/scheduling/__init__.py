"""Many requests on one engine: who waits, who runs, whose memory is kept.

Not here: HTTP (``server.transport``), what a request asks for (``server.api``).
"""
