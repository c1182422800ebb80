"""Expert parallelism for real: one process a rank, the schedules of `sim.schedulers.ep`, puts over `torch.distributed`.

A controller holds the scheduler; each rank runs its share of the Plan on threads of its own
(`exec.runtime`), hears from its peers directly, and stamps its tasks on the controller's clock.
"""
