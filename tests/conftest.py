"""Settings for all tests."""

from hypothesis import settings

# A schedule that takes long is no bug, and the machine may be busy; what CI draws it must draw
# again, which is hypothesis' own choice there.
settings.register_profile("patient", settings.get_profile("default"), deadline=None)
if settings.get_current_profile_name() == "default":
    settings.load_profile("patient")
