"""Diffusion: the noising process, what the network predicts, the loss, the samplers, guidance, and the Task that trains
a denoiser on latents.

The room knows latents and timesteps, never pixels: encoding, decoding and prompts belong to `walt.generation`.
Conventions: t in [0, 1] with t = 1 pure noise,
x_t = alpha(t) x0 + sigma(t) noise, per-frame timesteps `[B, F]`.
"""
