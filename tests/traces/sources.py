"""Small valid sources of every format that `import` reads, for tests that read, damage or compare them."""

from __future__ import annotations

import base64
import gzip
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

LAYERS, EXPERTS, K = 3, 6, 2


@dataclass(frozen=True)
class Sample:
    """A source file: its format and name, its bytes, options, and whether checksums cover its data."""

    format: str
    name: str
    make: Callable[[], bytes]
    options: dict[str, object] = field(default_factory=dict)
    checked: bool = False


def choices(tokens: int, seed: int = 0, layers: int = LAYERS) -> np.ndarray:
    """Experts [tokens, layers, k], all different within a token and layer."""
    r = np.random.default_rng(seed)
    return np.argsort(r.random((tokens, layers, EXPERTS)), axis=2)[:, :, :K]


def azure() -> bytes:
    rows = [f"2023-11-16 18:17:{3 + i:02d}.{9799600 - i:07d},{100 + i},{10 + i}" for i in range(20)]
    return ("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "\n".join(rows) + "\n").encode()


def azure_2024() -> bytes:
    rows = [f"2024-05-10 00:00:0{i}.0099{i:02d}+00:00,{2162 + i},{5 + i}" for i in range(9)]
    return ("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "\n".join(rows) + "\n").encode()


def burstgpt() -> bytes:
    rows = [f"{5 * i}.{i},ChatGPT,{100 + i},{20 + i},{120 + 2 * i},Conversation log" for i in range(20)]
    return ("Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n" + "\n".join(rows) + "\n").encode()


def vidur() -> bytes:
    rows = [f"{100 + i},{20 + i},{120 + 2 * i},{(100 + i) / (20 + i)}" for i in range(20)]
    return ("num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio\n" + "\n".join(rows) + "\n").encode()


def mooncake() -> bytes:
    rows = [{"timestamp": 30 * i, "input_length": 600 + i, "output_length": 5 + i, "hash_ids": [0, i + 1]} for i in range(20)]
    return "".join(json.dumps(r) + "\n" for r in rows).encode()


def servegen() -> bytes:
    window = [[600 * i, 0.05 * (i + 1), 1.5, "Gamma" if i % 2 else "Weibull", 0.5 + i, 0.2] for i in range(4)]
    lengths = {"0": {"input_tokens": {"10": 0.5, "20": 0.5}, "output_tokens": {"3": 1.0}, "reason_ratio": None}}
    clients = {str(c): {"trace": [*window, [2400, 0.0, 0.0, "", 0.0, 0.0]], "dataset": lengths} for c in range(3)}
    return gzip.compress(json.dumps(clients).encode(), mtime=0)


def npz() -> bytes:
    out = io.BytesIO()
    np.savez_compressed(out, experts=choices(30).astype(np.uint8), seq_offsets=np.array([0, 12, 30]))
    return out.getvalue()


def request_json() -> bytes:
    rows = [
        {"prompt_token_ids": list(range(5)), "output_token_ids": list(range(4)), "routed_experts": choices(8, s).tolist()} for s in range(3)
    ]
    return json.dumps(rows).encode()


def request_npz() -> bytes:
    out = io.BytesIO()
    np.savez(out, prompt_token_ids=np.arange(5), output_token_ids=np.arange(4), routed_experts=choices(8).astype(np.int32))
    return out.getvalue()


def vllm() -> bytes:
    rows = [
        {"request_id": str(s), "prompt_token_ids": [1] * 5, "outputs": [{"token_ids": [2] * 4, "routed_experts": choices(8, s).tolist()}]}
        for s in range(3)
    ]
    return "".join(json.dumps(r) + "\n" for r in rows).encode()


def vllm_packed() -> bytes:
    experts = choices(8).astype("<i4")
    row = {"prompt_tokens": 5, "routed_experts": base64.b64encode(experts.tobytes()).decode(), "routed_experts_shape": list(experts.shape)}
    return json.dumps(row).encode()


def vllm_npy() -> bytes:
    out = io.BytesIO()
    np.save(out, choices(8).astype(np.int16))
    return out.getvalue()


def token_jsonl() -> bytes:
    rows = [
        {"layer_idx": layer, "token_idx": t, "selected_ids": e.tolist(), "gate_weights": [0.75, 0.25]}
        for t, of_token in enumerate(choices(10)) for layer, e in enumerate(of_token)
    ]  # fmt: skip
    return "".join(json.dumps(r) + "\n" for r in rows).encode()


def batch_jsonl() -> bytes:
    rows = [
        {"layer": layer, "batch_id": b, "origin_rows": [0, 1, 2, 3], "topk_experts": choices(4, b)[:, layer].tolist(),
         "topk_weights": [[0.5, 0.5]] * 4}
        for b in range(4) for layer in range(LAYERS)
    ]  # fmt: skip
    return "".join(json.dumps(r) + "\n" for r in rows).encode()


def counts_json() -> bytes:
    return json.dumps({"logical_count": np.arange(LAYERS * EXPERTS).reshape(LAYERS, EXPERTS).tolist()}).encode()


def counts_npz() -> bytes:
    out = io.BytesIO()
    np.savez(out, counts=np.arange(2 * LAYERS * EXPERTS).reshape(2, LAYERS, EXPERTS))
    return out.getvalue()


def counts_csv() -> bytes:
    return "".join(",".join(str(6 * i + j) for j in range(EXPERTS)) + "\n" for i in range(LAYERS)).encode()


def counts_long_csv() -> bytes:
    rows = [f"{w},{i},{j},{w + i + j}" for w in range(2) for i in range(LAYERS) for j in range(EXPERTS)]
    return ("window,layer,expert,count\n" + "\n".join(rows) + "\n").encode()


def activations() -> bytes:
    return ("layer,expert\n" + "".join(f"{i},{e}\n" for t in choices(10) for i, es in enumerate(t) for e in es)).encode()


def sglang_tokens() -> bytes:
    """Three passes: a prefill of two prompts (3 and 2 tokens), two decode steps; the first request then ends."""
    slots = np.stack([np.random.default_rng(i).permutation(EXPERTS) for i in range(LAYERS)])
    passes = [([0, 1, 2, 0, 1], [3, 2]), ([3, 2], None), ([3], None)]
    records = []
    for number, (positions, extends) in enumerate(passes):
        ids = np.full((LAYERS, len(positions), 8), -1, np.int32)
        ids[:, :, :K] = choices(len(positions), number).transpose(1, 0, 2)
        records.append({
            "forward_pass_id": number, "rank": 0, "gatherer_key": "primary", "input_ids": [7] * len(positions), "positions": positions,
            "extend_seq_lens": extends, "forward_mode": 1 if extends else 2, "topk_ids_of_layer": _tensor(ids), "misc_objects": [],
            "global_physical_count": _tensor(np.zeros((LAYERS, EXPERTS), np.int32)),
        })  # fmt: skip
    return _torch_bytes({"records": records, "last_physical_to_logical_map": _tensor(slots)})


def sglang_passes() -> bytes:
    slots = np.tile([0, 1, 2, 3, 0, 1], (LAYERS, 1))
    records = [
        {"forward_pass_id": p, "rank": 0, "gatherer_key": "primary", "global_physical_count": _tensor(np.arange(18).reshape(3, 6) + p)}
        for p in range(3)
    ]
    return _torch_bytes({"records": records, "last_physical_to_logical_map": _tensor(slots)})


def sglang_stat() -> bytes:
    return _torch_bytes({
        "rank": 0, "logical_count": _tensor(np.arange(36).reshape(2, 3, 6).astype(np.int32)), "average_utilization_rate_over_window": None,
    })  # fmt: skip


def _tensor(values: np.ndarray):
    import torch

    return torch.from_numpy(np.ascontiguousarray(values))


def _torch_bytes(value: object) -> bytes:
    import torch

    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


SAMPLES = [
    Sample("azure", "azure.csv", azure), Sample("azure", "azure24.csv", azure_2024), Sample("burstgpt", "burst.csv", burstgpt),
    Sample("vidur", "vidur.csv", vidur), Sample("mooncake", "mooncake.jsonl", mooncake),
    Sample("servegen", "clients.json.gz", servegen, checked=True), Sample("npz", "routes.npz", npz, checked=True),
    Sample("requests", "requests.json", request_json), Sample("requests", "request.npz", request_npz, checked=True),
    Sample("vllm", "vllm.jsonl", vllm), Sample("vllm", "packed.json", vllm_packed),
    Sample("vllm", "a.npy", vllm_npy, {"prompt_tokens": 5}),
    Sample("token-jsonl", "tokens.jsonl", token_jsonl), Sample("batch-jsonl", "batches.jsonl", batch_jsonl),
    Sample("counts", "counts.json", counts_json), Sample("counts", "counts.npz", counts_npz, checked=True),
    Sample("counts", "matrix.csv", counts_csv), Sample("counts", "long.csv", counts_long_csv),
    Sample("activations", "used.csv", activations),
]  # fmt: skip
TORCH_SAMPLES = [
    Sample("sglang", "tokens.pt", sglang_tokens, checked=True), Sample("sglang", "passes.pt", sglang_passes, checked=True),
    Sample("sglang", "stat.pt", sglang_stat, checked=True),
]  # fmt: skip
