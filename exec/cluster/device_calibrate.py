"""The part of a ranks' profile that a device of each rank makes different: who computes, and what rows cross.

A rank's compute lane has its device whole; curves are timed on the first device by its own stamps, alone. Rows go over a link of
each device: what a put takes beside its bytes is latency, and the cores of the host that its threads keep busy.
Words between ranks, tasks that are handed on and the corrections by whole layers are those of ranks without devices.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing

from exec.calibration import device as alone
from exec.calibration import host
from exec.calibration.profile import processor
from exec.cluster import machine as machines
from exec.cluster import transport
from exec.cluster.calibrate import MEASURED, OPS, passing
from exec.cluster.controller import Cluster
from exec.cluster.device import CUDA, open_device
from exec.cluster.machine import Place
from exec.cluster.probes import sized, threads_of
from exec.weights import random_weights
from sim.machines.schema import Machine, OpRate, Resource

Say = Callable[[str], None]

ON_GPUS = (1 << 24, 1 << 26, 1 << 28)
"""Bytes of the puts that are timed on GPUs too: a link's rate shows in few shorter ones."""

NOTHING_S = 1e-18
"""What the intermediates of an expert take beside its products, for each row and column: nothing that could be told apart."""


def draft(cluster: Cluster, kind: str, say: Say = lambda text: None) -> Machine:
    """A profile by ops and puts that were measured alone. kind: see `Order.device`. Nothing else should use the first device."""
    ranks, threads = cluster.ranks, threads_of(cluster.ranks)
    spec = sized(1024, 4096, 8, 2) if kind == CUDA else sized(128, 256, 4, 2)
    say("cores")
    calibrated = f"calibrated on {processor()}"
    cores = Resource(kind="cores", capacity=host.cores(), source=f"{calibrated}: all cores at once against one alone")
    with cluster.opening():
        opened = open_device(kind, 0)
    with closing(opened) as device:
        name, ops = alone.device_name(device), []
        for row in alone.measure(alone.Bench(spec, random_weights(spec, 0), device), (*MEASURED, "expert_ffn")):
            say(f"{row.op} on the device")
            ops.append(row)
    ops += [OpRate(op=f"task.{op}", lane="gpu", source="calibrated") for op in OPS]
    ops.append(OpRate(op="expert_columns", lane="gpu", curve=((1.0, NOTHING_S),), source="calibrated: part of expert_ffn"))
    say("words and puts")
    places = [Place(place.computer, rank) for rank, place in enumerate(cluster.places)]
    rows, links = passing(cluster, places, kind, transport.SIZES + (ON_GPUS if kind == CUDA else ()))
    whole = Resource(kind="cores", capacity=1, source=f"one task of rank at a time on {name}")
    about = f"{name} for each rank, beside {processor()}"
    return machines.of_ranks(
        f"{ranks}-{name}-ranks@{os.uname().nodename}", places, threads, cores, links, [*ops, *rows], about, device=whole
    )
