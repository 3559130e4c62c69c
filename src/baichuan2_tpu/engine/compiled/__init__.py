"""The engine of compiled models: sequences over the nets of a device.

Not here: how a vendor's library is driven (``engine.device``).
"""
