"""Property tests of rmd_core have no deadline: the machine may be busy."""

from hypothesis import settings

settings.register_profile("rmd_core", deadline=None, max_examples=60)
settings.load_profile("rmd_core")
