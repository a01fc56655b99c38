"""Declare a continuous-time model and a certificate; compile them into training, inference and reports."""

from . import attacks as attacks, nn as nn, optim as optim
from ._assess import assess as assess
from ._certificate import (
    AllOf as AllOf,
    Asymptotic as Asymptotic,
    Barrier as Barrier,
    Certificate as Certificate,
    Contraction as Contraction,
    ControlBarrier as ControlBarrier,
    ControlLyapunov as ControlLyapunov,
    Exponential as Exponential,
    FiniteGain as FiniteGain,
    FiniteTime as FiniteTime,
    InputToState as InputToState,
    Point as Point,
    Practical as Practical,
    Reach as Reach,
    Varying as Varying,
    decay_from_rate as decay_from_rate,
    rate_from_decay as rate_from_decay,
)
from ._certify import (
    Assurance as Assurance,
    Claim as Claim,
    Counterexample as Counterexample,
    EarlyStop as EarlyStop,
    Report as Report,
    Robustness as Robustness,
    certified_radius as certified_radius,
    clopper_pearson as clopper_pearson,
    comparison_rule as comparison_rule,
    delta as delta,
    theorem_3 as theorem_3,
)
from ._compile import Program as Program, compile as compile
from ._condition import Condition as Condition
from ._constant import Constant as Constant
from ._control_affine import ControlAffine as ControlAffine, relative_degree as relative_degree
from ._domain import Ball as Ball, Box as Box, Domain as Domain, Product as Product
from ._enforce import Enforced as Enforced, enforce as enforce
from ._fit import FitResult as FitResult, Interrupted as Interrupted, NonFiniteError as NonFiniteError, fit as fit
from ._measure import (
    Boundary as Boundary,
    Boxes as Boxes,
    Cube as Cube,
    Measure as Measure,
    Mixture as Mixture,
    Samples as Samples,
    Sphere as Sphere,
    Trajectory as Trajectory,
)
from ._objective import (
    ClassCorner as ClassCorner,
    EndToEnd as EndToEnd,
    FlowMatching as FlowMatching,
    MonteCarlo as MonteCarlo,
    Objective as Objective,
    PathIntegral as PathIntegral,
    RobustMargin as RobustMargin,
    Sublevel as Sublevel,
)
from ._potential import (
    CrossEntropy as CrossEntropy,
    Loss as Loss,
    SquaredError as SquaredError,
    Truncated as Truncated,
    as_loss as as_loss,
    cross_entropy as cross_entropy,
    radius_for as radius_for,
    squared_error as squared_error,
    truncated as truncated,
)
from ._prove import (
    Agreement as Agreement,
    AllProperties as AllProperties,
    ContextRobustness as ContextRobustness,
    Decrease as Decrease,
    ForwardInvariant as ForwardInvariant,
    InputRobustness as InputRobustness,
    Match as Match,
    PositiveDefinite as PositiveDefinite,
    Premise as Premise,
    Proof as Proof,
    Property as Property,
    Prover as Prover,
    RadiusProof as RadiusProof,
    ReachTube as ReachTube,
    RegionOfAttraction as RegionOfAttraction,
    Robust as Robust,
    SublevelContained as SublevelContained,
    Tube as Tube,
    Verification as Verification,
    prove as prove,
)
from ._rollout import EulerInference as EulerInference
from ._save import load as load, save as save
from ._solve import Confidence as Confidence, Solver as Solver
from ._synthesize import Synthesis as Synthesis, synthesize as synthesize
from ._system import DiscreteSystem as DiscreteSystem, Start as Start, System as System, identity as identity
from ._trainable import trainable as trainable
from ._variational import Faces as Faces, variational as variational

__version__ = "0.1.0"
