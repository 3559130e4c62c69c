"""Files brought here over HTTP: the client, the hubs' listings, downloads that resume.

Not here: which files a model needs, and what is kept of them (``fetch``).
"""
