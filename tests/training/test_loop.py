import jax
import linear
import numpy as np

from walt.training.metrics import read_metrics


def equal(left, right):
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


TIMES = {"time", "seconds", "eta_seconds"}


def comparable(records):
    return [{k: v for k, v in r.items() if k not in TIMES and not k.endswith("_per_second")} for r in records]


def test_learns(tmp_path):
    state = linear.run(tmp_path, linear.make_config(num_steps=200, log_every=50))
    losses = [record["loss"] for record in read_metrics(tmp_path)]
    assert int(state.step) == 200
    assert losses[-1] < 0.2 * losses[0]


def test_resume_is_exact(tmp_path):
    straight = linear.run(tmp_path / "straight", linear.make_config(num_steps=33, checkpoint_every=7))
    for steps in (9, 21, 33):  # ends off the log and checkpoint grid
        schedule = linear.make_config(num_steps=33, checkpoint_every=7)
        resumed = stop_after(tmp_path / "resumed", schedule, steps)
    equal(straight, resumed)
    assert comparable(read_metrics(tmp_path / "straight")) == comparable(read_metrics(tmp_path / "resumed"))


def stop_after(workdir, config, steps):
    class Stopping(linear.LinearLoader):
        def batches(self, start_step=0):
            for step, batch in enumerate(super().batches(start_step), start_step):
                if step == steps:
                    raise KeyboardInterrupt
                yield batch

    try:
        return linear.run(workdir, config, loader=Stopping())
    except KeyboardInterrupt:
        return None
