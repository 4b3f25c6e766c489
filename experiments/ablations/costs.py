"""Print what each network of the ablations costs: parameters, GMACs, bytes per pixel saved for backward.

python experiments/ablations/costs.py
"""

from ablate import TABLES

from lmfn import LMFN
from lmfn.evaluation import measure_complexity, saved_bytes

if __name__ == "__main__":
    for variant in {variant.run: variant for variants in TABLES.values() for variant in variants}.values():
        model = LMFN.from_preset(variant.preset, **variant.changes)
        costs = measure_complexity(model)
        print(variant.run, costs.parameters, costs.gmacs, saved_bytes(model) / 256**2)
