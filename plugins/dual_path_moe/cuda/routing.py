"""Compute each group's weight per token, and the tokens of each expert: the kernels `route` and `sort`."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# (Triton gives a kernel's arguments their types when it is compiled.)

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def route(
    x,
    router,
    shared_gate,
    coefficient,
    coefficient_bias,
    group_weights,
    hidden,
    experts,
    top_k,
    norm_topk_prob,
    EXPERTS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Compute softmax, top-k and coefficients in float32 into `group_weights` float32 [n, 2 + experts]; one program per token.

    Exactly top_k experts are selected for any input (the lower index wins a tie, NaN counts as smallest). An expert whose weight
    underflows to 0 looks like one that was not selected.
    """
    token = tl.program_id(0)
    expert = tl.arange(0, EXPERTS)
    depth = tl.arange(0, DEPTH)
    real = expert < experts
    x_row = x + token.to(tl.int64) * hidden
    router_sum = tl.zeros((EXPERTS, DEPTH), tl.float32)
    shared_sum = tl.zeros((DEPTH,), tl.float32)
    moe_sum = tl.zeros((DEPTH,), tl.float32)
    dense_sum = tl.zeros((DEPTH,), tl.float32)
    for first in range(0, hidden, DEPTH):
        k = first + depth
        inside = k < hidden
        value = tl.load(x_row + k, mask=inside, other=0).to(tl.float32)
        rows = router + expert[:, None] * hidden + k[None, :]
        router_sum += value[None, :] * tl.load(rows, mask=real[:, None] & inside[None, :], other=0).to(tl.float32)
        shared_sum += value * tl.load(shared_gate + k, mask=inside, other=0).to(tl.float32)
        moe_sum += value * tl.load(coefficient + k, mask=inside, other=0).to(tl.float32)
        dense_sum += value * tl.load(coefficient + hidden + k, mask=inside, other=0).to(tl.float32)

    moe = tl.sum(moe_sum) + tl.load(coefficient_bias).to(tl.float32)
    dense = tl.sum(dense_sum) + tl.load(coefficient_bias + 1).to(tl.float32)
    peak = tl.maximum(moe, dense)
    moe = tl.exp(moe - peak)
    dense = tl.exp(dense - peak)
    total = moe + dense
    moe = moe / total
    dense = dense / total

    logits = tl.where(real, tl.sum(router_sum, axis=1), float("-inf"))
    exponents = tl.exp(logits - tl.max(logits, axis=0))
    probability = exponents / tl.sum(exponents, axis=0)
    order = tl.where(probability == probability, probability, -1.0)  # NaN would compare false with everything
    order = tl.where(real, order, -2.0)
    ahead = (order[None, :] > order[:, None]) | (
        (order[None, :] == order[:, None]) & (expert[None, :] < expert[:, None])
    )
    kept = real & (tl.sum(ahead.to(tl.int32), axis=1) < top_k)
    weight = tl.where(kept, probability, 0.0)
    if norm_topk_prob != 0:
        weight = tl.where(kept, weight / tl.sum(weight, axis=0), 0.0)

    to = group_weights + token * (2 + experts)
    tl.store(to, dense)
    tl.store(to + 1, moe * tl.sigmoid(tl.sum(shared_sum)))
    tl.store(to + 2 + expert, tl.where(kept, moe * weight, 0.0), mask=real)


@triton.jit
def sort(group_weights, expert_tokens, expert_counts, tokens, experts, ROWS: tl.constexpr):
    """One program per expert: the tokens that chose it in rising order, int32 [experts, tokens], and how many, int32 [experts]."""
    expert = tl.program_id(0)
    count = 0
    for first in range(0, tokens, ROWS):
        token = first + tl.arange(0, ROWS)
        weight = tl.load(group_weights + token * (2 + experts) + 2 + expert, mask=token < tokens, other=0)
        chosen = weight != 0
        ones = chosen.to(tl.int32)
        place = count + tl.cumsum(ones, axis=0) - 1
        tl.store(expert_tokens + expert.to(tl.int64) * tokens + place, token, mask=chosen)
        count += tl.sum(ones, axis=0)
    tl.store(expert_counts + expert, count)
