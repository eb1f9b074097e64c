"""The folder of checkpoints; what is in one is tested by the runs that resume from it."""

import numpy as np

from mg_keras.training.checkpoints import Checkpoints


def test_the_last_ones_and_the_best_stay_and_nothing_half_written(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    (tmp_path / f".step-000000003.{'0' * 32}.npz").write_text("a run killed while it wrote")
    for step in range(1, 7):
        meta = {"step": step, "best": {"step": min(step, 2)}}
        checkpoints.save(step, {"model/0000/kernel": np.float32([step])}, meta)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{step:09d}.npz" for step in (2, 5, 6)]
    for which, step in {"last": 6, "best": 2}.items():
        path, arrays, meta = checkpoints.load(which)
        assert (path.stem, arrays["model/0000/kernel"], meta["step"]) == (f"step-{step:09d}", [step], step)
