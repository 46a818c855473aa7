"""
How long replicas and models are waited for.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """Seconds, each from the settings."""

    load: float  #: a replica that has not loaded its model by then is ended; it counts as one that does not load
    silence: float  #: a replica that gives no sign of life for so long is killed
    give_up: float  #: rows end as `model_unavailable` when their model failed for so long
