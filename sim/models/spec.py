"""ModelSpec: the sizes of a Mixture-of-Experts decoder, and the parameter counts that follow from them.

Legend of shape letters: D hidden, F expert intermediate, E experts, H query heads, K key/value
heads, d head dimension, V vocabulary, L layers. Weights are written [in, out].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

DTYPE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1}
EXPERT_BITS = {"mxfp4": 4.25, "bf16": 16.0, "fp16": 16.0}
"""MXFP4: 4-bit values and one 8-bit scale for each block of 32 (OCP Microscaling Formats v1.0, 5.1)."""


@dataclass(frozen=True, slots=True)
class MLA:
    """Multi-head latent attention: keys and values live in a compressed row of each token.

    Source: DeepSeek-V2 (arXiv 2405.04434), section 2.1; names as in its `config.json`.
    """

    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    q_lora_rank: int = 0
    """0: the query is projected directly, as in the Lite model."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Sizes of one model; every count of parameters and bytes is derived.

    Attributes
    ----------
    family: `model_type` of the Hugging Face config.
    ffn: intermediate size of one routed expert. shared_ffn: of one shared expert. dense_ffn: of the
        FFN that the first `dense_layers` layers have in place of experts.
    dtype, dtype_bytes: of weights, activations and KV cache; `expert_dtype` where the routed
        experts' matrices are stored in another one.
    attention: "gqa"; "mla" (sizes in `mla`); "sliding": GQA where `sliding_layers` see only the
        last `sliding_window` tokens.
    attention_bias: biases on Q, K, V; output_bias: on O. qk_norm: RMSNorm of Q and K over the head
        ("head") or over all heads together ("full"). sinks: one learned logit a query head.
    """

    name: str
    family: str
    layers: int
    hidden: int
    ffn: int
    experts: int
    top_k: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    dtype: str = "bf16"
    expert_dtype: str = ""
    rope_theta: float = 1e6
    norm_eps: float = 1e-5
    tie_embeddings: bool = False
    max_positions: int = 32768
    attention: Literal["gqa", "mla", "sliding"] = "gqa"
    mla: MLA | None = None
    sliding_window: int = 0
    sliding_layers: tuple[int, ...] = ()
    shared_experts: int = 0
    shared_ffn: int = 0
    dense_layers: int = 0
    dense_ffn: int = 0
    router_bias: bool = False
    expert_bias: bool = False
    attention_bias: bool = False
    output_bias: bool = False
    qk_norm: Literal["", "head", "full"] = ""
    sinks: bool = False

    @property
    def dtype_bytes(self) -> int:
        return DTYPE_BYTES[self.dtype]

    # Parameters ---------------------------------------------------------------------------------

    @property
    def expert_params(self) -> int:
        """One routed expert: gate and up [D, F], down [F, D], with their biases where it has any."""
        return 3 * self.hidden * self.ffn + (2 * self.ffn + self.hidden if self.expert_bias else 0)

    @property
    def attention_params(self) -> int:
        """Attention of one layer: projections, their biases, norms of Q and K, sinks."""
        return self._mla_params if self.mla is not None else self._gqa_params

    @property
    def _gqa_params(self) -> int:
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        biases = (q + 2 * kv if self.attention_bias else 0) + (self.hidden if self.output_bias else 0)
        norms = {"": 0, "head": 2 * self.head_dim, "full": q + kv}[self.qk_norm]
        return 2 * self.hidden * q + 2 * self.hidden * kv + biases + norms + (self.heads if self.sinks else 0)

    @property
    def _mla_params(self) -> int:
        """Q [D, H (nope + rope)], KV down [D, r + rope], norm [r], KV up [r, H (nope + v)], O [H v, D]."""
        m = self.mla
        assert m is not None
        q_out = self.heads * (m.qk_nope_head_dim + m.qk_rope_head_dim)
        q = m.q_lora_rank * (self.hidden + 1 + q_out) if m.q_lora_rank else self.hidden * q_out
        down = self.hidden * (m.kv_lora_rank + m.qk_rope_head_dim) + m.kv_lora_rank
        up = m.kv_lora_rank * self.heads * (m.qk_nope_head_dim + m.v_head_dim)
        return q + down + up + self.heads * m.v_head_dim * self.hidden

    @property
    def router_params(self) -> int:
        """Router of one MoE layer [D, E]."""
        return self.hidden * self.experts + (self.experts if self.router_bias else 0)

    @property
    def shared_params(self) -> int:
        """All shared experts of one MoE layer."""
        return self.shared_experts * 3 * self.hidden * self.shared_ffn

    @property
    def dense_ffn_params(self) -> int:
        """FFN of one leading dense layer."""
        return 3 * self.hidden * self.dense_ffn if self.dense_layers else 0

    @property
    def norm_params(self) -> int:
        """The two norms of one layer."""
        return 2 * self.hidden

    @property
    def embedding_params(self) -> int:
        """Token embedding [V, D]."""
        return self.vocab * self.hidden

    @property
    def lm_head_params(self) -> int:
        """LM head [D, V]; 0 where it is the embedding."""
        return 0 if self.tie_embeddings else self.vocab * self.hidden

    @property
    def moe_layers(self) -> int:
        return self.layers - self.dense_layers

    @property
    def dense_params(self) -> int:
        """Everything but routed experts: attention, norms, routers, shared experts, leading dense
        FFNs, embedding, LM head, final norm."""
        per_layer = self.attention_params + self.norm_params
        moe = self.moe_layers * (self.router_params + self.shared_params)
        ends = self.embedding_params + self.lm_head_params + self.hidden
        return self.layers * per_layer + moe + self.dense_layers * self.dense_ffn_params + ends

    @property
    def total_params(self) -> int:
        return self.dense_params + self.moe_layers * self.experts * self.expert_params

    @property
    def active_params(self) -> int:
        """Parameters of one token's pass, the embedding table included (as Mixtral's 12.9B counts it)."""
        return self.dense_params + self.moe_layers * self.top_k * self.expert_params

    # Bytes --------------------------------------------------------------------------------------

    @property
    def expert_bytes(self) -> int:
        """Bytes of one routed expert. Biases stay in `dtype` where the matrices are stored smaller."""
        if not self.expert_dtype:
            return self.expert_params * self.dtype_bytes
        matrices = 3 * self.hidden * self.ffn
        return int(matrices * EXPERT_BITS[self.expert_dtype] / 8) + (self.expert_params - matrices) * self.dtype_bytes

    @property
    def layer_expert_bytes(self) -> int:
        """Bytes of all routed experts of one MoE layer."""
        return self.experts * self.expert_bytes

    @property
    def layer_dense_bytes(self) -> int:
        """Bytes of one MoE layer without its routed experts: attention, norms, router, shared experts."""
        return (self.attention_params + self.norm_params + self.router_params + self.shared_params) * self.dtype_bytes

    @property
    def dense_bytes(self) -> int:
        """Bytes of `dense_params`: what an offloading schedule keeps on the GPU."""
        return self.dense_params * self.dtype_bytes

    @property
    def weight_bytes(self) -> int:
        return self.dense_bytes + self.moe_layers * self.layer_expert_bytes

    @property
    def qkv_dim(self) -> int:
        """Width of a token's Q, K and V rows together."""
        if self.mla is not None:
            q = self.heads * (self.mla.qk_nope_head_dim + self.mla.qk_rope_head_dim)
            return q + self.mla.kv_lora_rank + self.mla.qk_rope_head_dim
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    @property
    def attention_out_dim(self) -> int:
        """Width of a token's attention output, before the O projection."""
        return self.heads * (self.mla.v_head_dim if self.mla is not None else self.head_dim)

    @property
    def kv_dim(self) -> int:
        """Values that a token leaves in the KV cache of one layer: K and V rows, or MLA's latent row."""
        if self.mla is not None:
            return self.mla.kv_lora_rank + self.mla.qk_rope_head_dim
        return 2 * self.kv_heads * self.head_dim

    @property
    def kv_bytes_per_token_layer(self) -> int:
        return self.kv_dim * self.dtype_bytes

    def kv_entries(self, layer: int, context: int) -> int:
        """Entries that `layer` keeps and reads of a sequence of `context` tokens: at most the window
        where the layer slides."""
        return min(context, self.sliding_window) if layer in self.sliding_layers else context

    def kv_bytes(self, context: int) -> int:
        """KV cache of one sequence of `context` tokens over all layers."""
        sliding = len(self.sliding_layers)
        entries = (self.layers - sliding) * context + sliding * min(context, self.sliding_window)
        return entries * self.kv_bytes_per_token_layer

    # What the executor runs ---------------------------------------------------------------------

    @property
    def not_executable_because(self) -> str:
        """Why `exec` cannot run this model, in a few words; empty where it can."""
        if self.attention == "mla":
            return "its attention is MLA (a compressed KV cache), which the executor does not run"
        if self.attention == "sliding":
            return "its attention has sliding-window layers, which the executor does not run"
        if self.qk_norm:
            return f"family {self.family} normalises Q and K, which the executor does not run"
        if self.family != "mixtral":
            return f"the executor runs the Mixtral architecture, not {self.family}"
        return ""

    @property
    def executable(self) -> bool:
        return not self.not_executable_because
