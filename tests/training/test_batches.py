"""The samples that a process draws."""

import dataclasses

from lmfn.training.batches import StepBatches
from lmfn.training.settings import Settings


def test_processes_share_the_samples_of_a_step(settings: Settings) -> None:
    one = dataclasses.replace(settings, batch=12, accumulate=1, steps=4)
    shared = dataclasses.replace(settings, batch=2, accumulate=2, steps=4)
    alone = list(StepBatches(one, 1, 0, 1))
    parts = [list(StepBatches(shared, 1, process, 3)) for process in range(3)]
    assert len(alone) == 3
    for step, batch in enumerate(alone):
        together = [n for part in parts for micro in part[2 * step : 2 * step + 2] for n in micro]
        assert sorted(together) == sorted(batch) == list(range(12 * (step + 1), 12 * (step + 2)))
