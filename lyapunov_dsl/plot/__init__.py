"""Figures. Needs matplotlib (the extra `[plot]`); not imported by `import lyapunov_dsl`."""

try:
    import matplotlib  # noqa: F401
except ImportError as error:
    raise ImportError("lyapunov_dsl.plot needs matplotlib: pip install 'lyapunov_dsl[plot]'") from error

from ._boundary import decision_boundary as decision_boundary
from ._decay import potential_over_time as potential_over_time
from ._levels import level_sets as level_sets
from ._phase import phase_portrait as phase_portrait
from ._plane import class_plane as class_plane
from ._stopping import error_over_time as error_over_time
