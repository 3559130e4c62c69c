"""Settings for every test of this project."""

import hypothesis

# No test may depend on the clock: machines differ, and a shared one stalls for half a second now and then.
hypothesis.settings.register_profile(
    "project", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("project")
