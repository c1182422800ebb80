"""Experts of a checkpoint on disk, in a RAM tier and in a device tier, each under a hard byte budget.

    places      where in which safetensors file each matrix of each expert lies
    manifest    checksums of all tensors, made once, verified at every load
    staging     a fixed count of pinned buffers that disk reads land in
    files       direct reads, and whether a file is still the one that was opened
    loader      reads, verifies and widens: several chunks at a time, in order
    tiers       segments of a memory by slot: filled, used, evicted, moved together
    pool        the three of them together: what the ops of the executor call

Nothing here decides: which expert lies in which slot, and which one goes, is said by a pure object of
`sim` that both clocks share.
"""
