"""Orders of requests and steps, and what must hold after any of them."""
