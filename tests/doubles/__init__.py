"""Stand-ins for what a test must not need: engines, devices, SAIL, hubs, other machines."""
