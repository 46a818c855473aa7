"""
How long Hypothesis looks: `short` in every run, `--hypothesis-profile=long` for a night.
"""

from hypothesis import HealthCheck, settings

_COMMON = {"deadline": None, "database": None, "print_blob": True, "suppress_health_check": list(HealthCheck)}

settings.register_profile("short", max_examples=50, stateful_step_count=25, **_COMMON)
settings.register_profile("long", max_examples=4_000, stateful_step_count=30, **_COMMON)
settings.load_profile("short")
