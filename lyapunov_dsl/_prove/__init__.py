from ._branch import Budget as Budget
from ._match import Match as Match
from ._proof import Proof as Proof
from ._robust import (
    Premise as Premise,
    Robust as Robust,
    certify_robustness as certify_robustness,
)
from ._tube import Tube as Tube
from ._verify import Verification as Verification, verify as verify
