"""The paper's recurrence once more, one sequence and one number at a time, for tests alone.

Written from section 3 of arXiv:1610.06258v3 in NumPy without a look at the layer, and with the
mistakes of public implementations as options, so that a test can show that it would notice each.
"""

import numpy as np

TRAPS = (
    "norm over the batch",
    "norm on h_0",
    "W times h_0",
    "h_0 written before A is read",
    "A summed over the batch",
    "only the diagonal of A",
)


def run(x, weights, decay, fast_lr, inner_steps, f, trap=None):
    """States of every step for inputs (T, B, I); ``weights`` as the layer names them, in NumPy."""
    steps, batch, _ = x.shape
    size = len(weights["weight_hh_l0"])
    h = np.zeros((batch, size))
    h_0 = np.zeros((batch, size))
    A = np.zeros((batch, size, size))
    states = []
    for t in range(steps):
        carried = h_0 if trap == "W times h_0" else h
        bracket = carried @ weights["weight_hh_l0"].T + x[t] @ weights["weight_ih_l0"].T
        bracket = bracket + weights["bias_ih_l0"] + weights["bias_hh_l0"]
        h_0 = f(_norm(bracket, weights) if trap == "norm on h_0" else bracket)
        if trap == "h_0 written before A is read":
            A = decay * A + fast_lr * np.stack([np.outer(row, row) for row in h_0])
        read = A.copy()
        if trap == "A summed over the batch":
            read[:] = A.sum(0)
        if trap == "only the diagonal of A":
            read = np.stack([np.diag(np.diag(a)) for a in A])
        h = h_0
        for _ in range(inner_steps):
            found = np.stack([a @ row for a, row in zip(read, h, strict=True)])
            if "read_weight_l0" in weights:
                lengths = np.sqrt((h * h).sum(1, keepdims=True) + 1e-6)
                found = found / (lengths * np.sqrt(size))
                found = found / np.sqrt(1 + np.mean(found**2, 1, keepdims=True) / 4)
                found = 24 * weights["read_weight_l0"] * found
            total = bracket + found
            h = f(_norm(total, weights, axis=0 if trap == "norm over the batch" else 1))
        if trap != "h_0 written before A is read":
            A = decay * A + fast_lr * np.stack([np.outer(row, row) for row in h])
        states.append(h)
    return np.stack(states)


def _norm(total, weights, axis=1):
    if "norm_weight_l0" not in weights:
        return total
    mean = total.mean(axis, keepdims=True)
    spread = np.sqrt(total.var(axis, keepdims=True) + 1e-5)
    return (total - mean) / spread * weights["norm_weight_l0"] + weights["norm_bias_l0"]
