"""The programs that ``compare_cpu.py`` measures, each behind the same interface.

Every program runs in a process of its own (``worker``), so that its memory and threads end with it.
"""
