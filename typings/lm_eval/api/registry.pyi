from collections.abc import Container

metric_registry: Container[str]
