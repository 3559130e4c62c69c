"""The web page: conversations that live in the browser, answered by the scheduler.

``layout`` says what is on it, ``page.js`` what the browser does, ``answering`` what the server does, ``door``
who gets in and what the browser may load. The server keeps nothing of a conversation but its running answer.
Not here: the API (``routes_*``).
"""
