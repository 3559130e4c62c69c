"""Choosing tokens: settings, sampling, stop strings, and the loop that feeds an engine.

Not here: the order of messages in a prompt (``text.template``), keeping a conversation (``chat``).
"""
