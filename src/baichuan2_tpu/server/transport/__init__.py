"""Connections and what guards them: listening, keys, limits, the request log, health.

Not here: what a request asks for (``server.api``).
"""
