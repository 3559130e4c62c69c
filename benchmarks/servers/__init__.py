"""The servers that ``serve_speed.py`` asks, each in a process of its own, and the asking.

All traffic stays on 127.0.0.1.
"""
