"""The web page: conversations that are kept in the browser and answered by the scheduler.

``components`` is what is on it, ``page.js`` what the browser does, ``turns`` what the server does, ``access``
who may open it and what it may load. The server keeps nothing of a conversation but the answer in work.
Not here: the API (``server.api``).
"""
