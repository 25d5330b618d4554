"""Losses of sparse autoencoders in NumPy and float64, written from the papers: the truth of the tests."""

import numpy as np

from pod_job.config.train import Architecture
from pod_job.training.architectures.shape import SaeShape


def reference_loss(shape: SaeShape, params: dict, rows, targets, valid, coefficients, dead) -> tuple[float, np.ndarray]:
    """Returns the loss and the latents of the valid rows."""
    p = {name: np.asarray(value, np.float64) for name, value in params.items()}
    x, y = np.asarray(rows, np.float64)[valid], np.asarray(targets, np.float64)[valid]
    sae = shape.taps == 1 and not shape.transcoder
    pre = (x - p["decoder_bias"] if sae else x) @ p["encoder"]
    taps = p["decoder"].reshape(shape.latents, shape.taps, -1)
    norms = np.linalg.norm(taps, axis=2).sum(axis=1)
    skip = x @ p["skip"] if "skip" in p else 0.0
    sparsity, auxiliary, k, _ = (float(value) for value in coefficients)

    def error(latents, upto=None, bias=p["decoder_bias"]):
        return np.mean(np.sum((y - latents[:, :upto] @ p["decoder"][:upto] - bias - skip) ** 2, axis=1))

    positive = np.maximum(pre + p["encoder_bias"], 0)
    if shape.architecture is Architecture.relu:
        return error(positive) + sparsity * np.mean(np.sum(positive * norms, axis=1)), positive
    if shape.architecture is Architecture.gated:
        gate = pre + p["gate_bias"]
        latents = (gate > 0) * np.maximum(pre * np.exp(p["gate_scale"]) + p["encoder_bias"], 0)
        opened = np.maximum(gate, 0)
        return error(latents) + sparsity * np.mean(np.sum(opened * norms, axis=1)) + error(opened), latents
    if shape.architecture is Architecture.jump_relu:
        latents = np.where(pre + p["encoder_bias"] > np.exp(p["log_threshold"]), pre + p["encoder_bias"], 0)
        l0 = np.sum(latents > 0, axis=1)
        return error(latents) + sparsity * np.mean(l0 if shape.k is None else (l0 / k - 1) ** 2), latents
    if shape.architecture is Architecture.topk:
        lowest = np.sort(positive, axis=1)[:, -int(k), None]
    else:
        lowest = np.sort(positive, axis=None)[-int(k * len(x))]
    latents = np.where(positive >= lowest, positive, 0)
    ends = np.cumsum(shape.group_sizes or (shape.latents,))
    return sum(error(latents, end) for end in ends) + auxiliary * aux_k(
        p, shape, y, skip, positive, latents, dead
    ), latents


def aux_k(p, shape, y, skip, positive, latents, dead) -> float:
    count = int(dead.sum())
    if not count:
        return 0.0
    k = min(count, shape.input_width // 2)
    candidates = np.where(dead, positive, 0)
    lowest = np.sort(candidates, axis=1)[:, -k, None]
    residual = y - latents @ p["decoder"] - p["decoder_bias"] - skip
    guess = np.where(candidates >= lowest, candidates, 0) @ p["decoder"]
    return min(count / (shape.input_width // 2), 1) * np.mean(np.sum((residual - guess) ** 2, axis=1))
