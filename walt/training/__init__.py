"""One training loop for everything: a `Task` in, a checkpointed `TrainState` out.

This room imports no model. It owns accumulation, clipping, the finite check, the update, the moving average,
checkpoints, resuming, metrics and the loop itself; a model joins by implementing `walt.training.task.Task`.
"""
