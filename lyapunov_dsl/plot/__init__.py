"""Figures. Needs matplotlib (the extra `[plot]`); not imported by `import lyapunov_dsl`."""

try:
    import matplotlib  # noqa: F401
except ImportError as error:
    raise ImportError("lyapunov_dsl.plot needs matplotlib: pip install 'lyapunov_dsl[plot]'") from error

from ._decay import potential_over_time as potential_over_time
from ._phase import class_plane as class_plane, phase_portrait as phase_portrait
