"""What the loop compiles on eight devices: each function once, however long it trains."""

import jax
import linear
from meshes import compilations

from walt.parallel.config import MeshConfig
from walt.training.heldout import HeldOut


def test_each_step_function_is_compiled_once(tmp_path):
    """And after the first of each, nothing: no step, evaluation or checkpoint traces anything again."""
    heldout = HeldOut(linear.LinearTask(), linear.LinearLoader(), every=4)
    settings = {"mesh": MeshConfig(data=2, fsdp=4), "checkpoint_every": 4}
    counts = []
    for steps in (8, 24):
        with compilations() as compiled:
            config = linear.make_config(num_steps=steps, **settings)
            linear.run(tmp_path / str(steps), config, evaluators=[heldout], devices=jax.devices())
        counts.append(compiled)
    short, long = counts
    assert short["train_step"] == long["train_step"] == short["eval_step"] == 1, counts
    assert long["eval_step"] == 0 and long.total() <= short.total(), counts
