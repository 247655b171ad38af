"""What a program would need and cost on a TPU pod, from compiling it for that pod: no TPU is needed, and nothing runs.

This room knows programs and chips, no models: it is handed a lowered program and what its FLOPs are.
"""
