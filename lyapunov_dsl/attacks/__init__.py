from ._pgd import pgd as pgd
