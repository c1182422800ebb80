"""Schedulers of one MoE layer over several GPUs. Ops, lanes and buffers: see `sim.ep`."""
