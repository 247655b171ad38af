"""Devices: the mesh, which array dimension lies on which mesh axis, batches from process-local rows, multi-host
start-up.

This room knows nothing of models or training; everything in it works unchanged for one CPU device.
"""
