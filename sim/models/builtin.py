"""The built-in models. Sizes are those of each `config.json` on the Hugging Face hub; repositories in the comments."""

from __future__ import annotations

from sim.models.spec import MLA, ModelSpec

BUILTIN: tuple[ModelSpec, ...] = (
    ModelSpec(  # mistralai/Mixtral-8x7B-v0.1; 46.7B, 12.9B active
        "mixtral-8x7b", "mixtral", layers=32, hidden=4096, ffn=14336, experts=8, top_k=2, heads=32, kv_heads=8,
        head_dim=128, vocab=32000, rope_theta=1e6, norm_eps=1e-5, max_positions=32768,
    ),
    ModelSpec(  # mistralai/Mixtral-8x22B-v0.1; 140.6B, 39.1B active
        "mixtral-8x22b", "mixtral", layers=56, hidden=6144, ffn=16384, experts=8, top_k=2, heads=48, kv_heads=8,
        head_dim=128, vocab=32000, rope_theta=1e6, norm_eps=1e-5, max_positions=65536,
    ),
    ModelSpec(  # databricks/dbrx-base; 132B, 36B active
        "dbrx", "dbrx", layers=40, hidden=6144, ffn=10752, experts=16, top_k=4, heads=48, kv_heads=8,
        head_dim=128, vocab=100352, rope_theta=5e5, norm_eps=1e-5, max_positions=32768,
    ),
    ModelSpec(  # deepseek-ai/DeepSeek-V2-Lite; 15.7B, 2.4B active (embedding table not counted)
        "deepseek-v2-lite", "deepseek_v2", layers=27, hidden=2048, ffn=1408, experts=64, top_k=6, heads=16, kv_heads=16,
        head_dim=192, vocab=102400, rope_theta=1e4, norm_eps=1e-6, max_positions=163840, attention="mla",
        mla=MLA(kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128),
        shared_experts=2, shared_ffn=1408, dense_layers=1, dense_ffn=10944,
    ),
    ModelSpec(  # Qwen/Qwen3-30B-A3B; 30.5B, 3.3B active
        "qwen3-30b-a3b", "qwen3_moe", layers=48, hidden=2048, ffn=768, experts=128, top_k=8, heads=32, kv_heads=4,
        head_dim=128, vocab=151936, rope_theta=1e6, norm_eps=1e-6, max_positions=40960, qk_norm="head",
    ),
    ModelSpec(  # openai/gpt-oss-20b; 20.9B, 3.6B active (embedding table not counted)
        "gpt-oss-20b", "gpt_oss", layers=24, hidden=2880, ffn=2880, experts=32, top_k=4, heads=64, kv_heads=8,
        head_dim=64, vocab=201088, expert_dtype="mxfp4", rope_theta=1.5e5, norm_eps=1e-5, max_positions=131072,
        attention="sliding", sliding_window=128, sliding_layers=tuple(range(0, 24, 2)),
        router_bias=True, expert_bias=True, attention_bias=True, output_bias=True, sinks=True,
    ),
    ModelSpec(  # allenai/OLMoE-1B-7B-0924; 6.9B, 1.3B active
        "olmoe", "olmoe", layers=16, hidden=2048, ffn=1024, experts=64, top_k=8, heads=16, kv_heads=16,
        head_dim=128, vocab=50304, rope_theta=1e4, norm_eps=1e-5, max_positions=4096, qk_norm="full",
    ),
    ModelSpec(  # ours: small enough to really run on any computer
        "tiny-mixtral", "mixtral", layers=4, hidden=512, ffn=1792, experts=8, top_k=2, heads=8, kv_heads=4,
        head_dim=64, vocab=8192, dtype="fp32", rope_theta=1e6, norm_eps=1e-5, max_positions=4096,
    ),
)  # fmt: skip

NAMES: dict[str, ModelSpec] = {m.name: m for m in BUILTIN}
