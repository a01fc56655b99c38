from ._branch import Prover as Prover
from ._inference import Agreement as Agreement
from ._match import Match as Match
from ._proof import Proof as Proof
from ._properties import (
    AllProperties as AllProperties,
    ContextRobustness as ContextRobustness,
    Decrease as Decrease,
    ForwardInvariant as ForwardInvariant,
    InputRobustness as InputRobustness,
    PositiveDefinite as PositiveDefinite,
    Property as Property,
    ReachTube as ReachTube,
    RegionOfAttraction as RegionOfAttraction,
    SublevelContained as SublevelContained,
)
from ._prove import prove as prove
from ._radii import Premise as Premise, Robust as Robust
from ._radius import RadiusProof as RadiusProof
from ._tube import Tube as Tube
from ._verify import Verification as Verification
