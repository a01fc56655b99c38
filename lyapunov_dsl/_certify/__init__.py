from ._assurance import (
    Assurance as Assurance,
    Claim as Claim,
    Counterexample as Counterexample,
    clopper_pearson as clopper_pearson,
)
from ._report import EarlyStop as EarlyStop, Report as Report, Robustness as Robustness
from ._rules import (
    certified_radius as certified_radius,
    comparison_rule as comparison_rule,
    delta as delta,
    theorem_3 as theorem_3,
)
