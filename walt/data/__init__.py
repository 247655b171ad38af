"""Footage in, batches out: media files, record folders, the order of examples, loaders and recipes.

The room is numpy only. Nothing here imports jax, so that loader workers and emulator processes start fast.
"""
