"""Tests of layer8; how hard Hypothesis looks is chosen by LAYER8_FUZZ (small or big)."""

import os

from hypothesis import HealthCheck, settings

_SLOW_IS_FINE = [HealthCheck.too_slow]
settings.register_profile("small", max_examples=60, deadline=None, suppress_health_check=_SLOW_IS_FINE)
settings.register_profile("big", max_examples=2_000, deadline=None, suppress_health_check=_SLOW_IS_FINE)
settings.load_profile(os.environ.get("LAYER8_FUZZ", "small"))
