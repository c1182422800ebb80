"""Which sequences a published run served: Algorithm 2's aborts, and the batch of a system that did not publish it."""

from __future__ import annotations

from dataclasses import replace

from sim.errors import UserError
from sim.job import Job, prepare
from sim.machines.schema import Machine
from sim.models.spec import ModelSpec
from sim.schedulers.policy import Policy
from sim.schedulers.sequences import Sequences
from sim.workloads.schema import Workload

LIVE_PARAMETERS = 1_000_000_000
"""Parameters that ZeRO-3 keeps gathered at a time: DeepSpeed's default, stage3_max_live_parameters."""

CONTEXT_BYTES = 500_000_000
"""CUDA context and library workspaces (guessed)."""

PREFILL_ROWS = 2
"""Prompts in one prefill micro-batch of DeepSpeed: Hugging Face's layers go through the experts one by one, so
that their intermediates are those of a few prompts."""


def deepspeed_most(model: ModelSpec, machine: Machine, prompt: int, gen: int) -> int:
    """Sequences whose prefill fits on the GPU beside the parameters in use, as Hugging Face computes it.

    A sequence needs its KV cache over all layers; its prompt's rows of hidden, QKV and attention
    output; logits of every prompt token, in the model's dtype and once more in fp32; and the scores of
    one layer's attention [heads, prompt, prompt], likewise twice.
    """
    b = model.dtype_bytes
    rows = prompt * (model.hidden + model.qkv_dim + model.attention_out_dim) * b
    twice = (b + 4) * (prompt * model.vocab + model.heads * prompt * prompt)
    room = machine.memories["gpu"].budget_bytes - LIVE_PARAMETERS * b - CONTEXT_BYTES
    return max(1, room // (model.kv_bytes(prompt + gen) + rows + twice))


def deepspeed_job(model: ModelSpec, machine: Machine, workload: Workload) -> Job:
    """One batch, the largest that both Hugging Face's prefill and the simulated schedule have memory for."""
    most = deepspeed_most(model, machine, workload.longest_prompt, workload.longest_generation)
    for batch in range(most, 0, -1):
        try:
            policy = Policy(batch=batch, microbatch=batch, prefill_microbatch=min(batch, PREFILL_ROWS))
            return prepare(model, machine, workload, "deepspeed", policy)
        except UserError:
            if batch == 1:
                raise
    raise AssertionError(most)


def one_batch(job: Job) -> Job:
    """Only what Algorithm 2 lets into the first batch: MoE-Lightning's runs never served whom it aborted.

    The cache size is the released code's, micro-batch x (average prompt + gen) entries.
    """
    policy = job.policy.model_copy(update={"cache_tokens": None})
    s = Sequences(policy)
    s.waiting, s.closed = list(job.requests), True
    s.admit()
    aborted = {r.request_id for r in s.waiting}
    served = [r for r in job.requests if r.request_id not in aborted]
    requests = tuple(replace(r, request_id=i) for i, r in enumerate(served))
    lengths = tuple(job.lengths[r.request_id] for r in served)
    return replace(job, requests=requests, lengths=lengths)
