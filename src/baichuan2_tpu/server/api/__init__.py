"""The OpenAI-compatible interface: what requests mean, and how answers are written.

Not here: which request is computed when (``server.scheduling``), sockets and keys (``server.transport``).
"""
