"""Generation: bundles of weights, the `Pipeline` that turns prompts into videos, and the fitting of odd sizes.

Pixels are uint8 at this room's border; everything below it speaks floats and latents.
"""
