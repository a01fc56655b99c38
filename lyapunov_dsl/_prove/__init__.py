from ._branch import Budget as Budget
from ._inference import Agreement as Agreement
from ._match import Match as Match
from ._proof import Proof as Proof
from ._radii import Premise as Premise, Robust as Robust
from ._radius import RadiusProof as RadiusProof
from ._robust import certify_robustness as certify_robustness
from ._tube import Tube as Tube
from ._verify import Verification as Verification, verify as verify
