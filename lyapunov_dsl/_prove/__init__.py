from ._branch import Budget as Budget
from ._proof import Proof as Proof
from ._verify import Verification as Verification, verify as verify
