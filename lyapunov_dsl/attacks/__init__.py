"""Attacks on any JAX function from a batch of inputs to a batch of logits."""

from ._apgd import apgd_ce as apgd_ce, apgd_t as apgd_t
from ._evaluate import evaluate as evaluate, standard_attacks as standard_attacks
from ._fab import fab as fab
from ._noise import noise as noise
from ._pgd import pgd as pgd
from ._report import AttackReport as AttackReport
from ._square import square as square
