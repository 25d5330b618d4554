"""Shape and logical axes of every weight of one layer, by name. No jax.

Shapes: D hidden, N query heads, K key/value heads, H head size, F mlp, E experts, S mlp of the shared one, W positions
that a filter sees.
"""

from pod_job.models.arch import Arch

Axes = tuple[str | None, ...]
Dims = tuple[tuple[int, ...], Axes]
"""Shape and logical axes of a weight of one layer."""
OF_ATTENTION = ("q", "k", "v", "o", "attn_gate", "sinks")
"""Weights, with their norms and biases, that only layers with attention have."""
OF_DELTA = "delta_"
"""Beginning of the names of weights that only layers with a gated delta rule have."""


def layer_matrices(arch: Arch) -> dict[str, Dims]:
    """Returns shape and axes of each matrix of a layer."""
    D, N, K, H, F = arch.hidden, arch.heads, arch.kv_heads, arch.head_dim, arch.mlp
    kv, mlp, down = ("embed", "kv_heads", "head"), ((D, F), ("embed", "mlp")), ((F, D), ("mlp", "embed"))
    router: dict[str, Dims] = {}
    if E := arch.experts:
        # Experts are split among devices, or each of them whole: hence another axis than that of a plain mlp.
        mlp, down = ((E, D, F), ("expert", "embed", "expert_mlp")), ((E, F, D), ("expert", "expert_mlp", "embed"))
        router = {"router": ((D, E), ("embed", None))}
    if S := arch.shared_mlp:
        shared: Dims = (D, S), ("embed", "mlp")
        router |= {"shared_gate": shared, "shared_up": shared, "shared_down": ((S, D), ("mlp", "embed"))}
        router["shared_router"] = (D, 1), ("embed", None)
    gate = {"gate": mlp} if arch.gated else {}
    query: Dims = (D, N, H), ("embed", "heads", "head")
    return {
        "q": query,
        "k": ((D, K, H), kv),
        "v": ((D, K, H), kv),
        **({"attn_gate": query} if arch.attn_gate else {}),
        "o": ((N, H, D), ("heads", "head", "embed")),
        **delta_matrices(arch),
        **router,
        **gate,
        "up": mlp,
        "down": down,
    }


def delta_matrices(arch: Arch) -> dict[str, Dims]:
    """Returns shape and axes of each matrix of a gated delta rule, and of the filters before it; see `delta_net`."""
    if (sizes := arch.delta) is None:
        return {}
    D, W = arch.hidden, sizes.kernel
    keys, values = (sizes.key_heads, sizes.key_size), (sizes.value_heads, sizes.value_size)
    key, value = ("delta_keys", "head"), ("delta_values", "head")
    of_head: Dims = (D, sizes.value_heads), ("embed", "delta_values")
    return {
        **dict.fromkeys(("delta_q", "delta_k"), ((D, *keys), ("embed", *key))),
        **dict.fromkeys(("delta_v", "delta_gate"), ((D, *values), ("embed", *value))),
        **dict.fromkeys(("delta_beta", "delta_decay"), of_head),
        **dict.fromkeys(("delta_q_conv", "delta_k_conv"), ((W, *keys), (None, *key))),
        "delta_v_conv": ((W, *values), (None, *value)),
        "delta_o": ((*values, D), (*value, "embed")),
    }


def layer_norms(arch: Arch) -> dict[str, Dims]:
    """Returns shape and axes of each norm of a layer, and of its bias where it has one."""
    D, N, K, H = arch.hidden, arch.heads, arch.kv_heads, arch.head_dim
    hidden: Dims = ((D,), ("embed",))
    norms: dict[str, Dims] = dict.fromkeys(("attn_norm", "mlp_norm"), hidden) if arch.pre_norms else {}
    if arch.qk_norm and arch.qk_norm_of_heads:
        norms |= dict.fromkeys(("q_norm", "k_norm"), ((H,), ("head",)))
    elif arch.qk_norm:
        norms |= {"q_norm": ((N, H), ("heads", "head")), "k_norm": ((K, H), ("kv_heads", "head"))}
    norms |= dict.fromkeys(("attn_post_norm", "mlp_post_norm"), hidden) if arch.post_norms else {}
    norms |= {"delta_norm": ((arch.delta.value_size,), ("head",))} if arch.delta else {}
    return norms | {f"{name}_bias": of_norm for name, of_norm in norms.items() if arch.layer_norm}


def layer_biases(arch: Arch) -> dict[str, Dims]:
    """Returns shape and axes of the biases of a layer's matrices, and of the sinks and decay rates of its heads."""
    D, N, K, H, F, E = arch.hidden, arch.heads, arch.kv_heads, arch.head_dim, arch.mlp, arch.experts
    kv, hidden = ((K, H), ("kv_heads", "head")), ((D,), ("embed",))
    mlp: Dims = ((E, F), ("expert", "expert_mlp")) if E else ((F,), ("mlp",))
    down: Dims = ((E, D), ("expert", "embed")) if E else hidden
    qkv = {"q_bias": ((N, H), ("heads", "head")), "k_bias": kv, "v_bias": kv} if arch.qkv_bias else {}
    gate = {"gate_bias": mlp} if arch.gated else {}
    if arch.attn_gate and arch.qkv_bias:
        qkv["attn_gate_bias"] = qkv["q_bias"]
    of_delta = (
        dict.fromkeys(("delta_rate", "delta_step_bias"), ((arch.delta.value_heads,), ("delta_values",)))
        if arch.delta
        else {}
    )
    return {
        **qkv,
        **of_delta,
        **({"o_bias": hidden} if arch.out_bias else {}),
        **({"sinks": ((N,), ("heads",))} if arch.sinks else {}),
        **({"router_bias": ((E,), (None,))} if arch.router_bias else {}),
        **(gate | {"up_bias": mlp, "down_bias": down} if arch.mlp_bias else {}),
    }
