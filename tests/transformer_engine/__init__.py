"""Transformer Engine's own Python code on the CPU, its compiled kernels put into plain torch.

`make test-transformer-engine` fetches the Python part of Transformer Engine (a wheel of 1 MB that
needs no CUDA) and runs what is here. It holds all that is decided in Python, by Megatron-Core, by
Transformer Engine or by us: which kernel is asked for what, with which mask, window, layout and
scale, what is gathered and reduced over ranks, what is kept for the backward pass, which weight
gets which gradient. It does not hold the kernels themselves, nor any speed: those need tests/gpu.
"""
