"""The step of layers beside its formulas."""

from __future__ import annotations

import math

import pytest
import torch

from ngsgd.kernels.rows import append_ones
from ngsgd.kernels.step import Preconditioned, Trained, descend, side_by_side

from .helpers import WIDTHS, an_estimate, compiled, random


def test_weights_and_bias_are_one_matrix_where_they_lie_so() -> None:
    one, other = random(5, 16), random(5, 16, seed=1)
    joined = side_by_side(one[:, :7], one[:, 7])
    assert joined is not None
    assert torch.equal(joined, one[:, :8])
    joined.zero_()
    assert not one[:, :8].any()
    for bias in (other[:, 7], one[:, 8], one[:, 7].clone()):
        assert side_by_side(one[:, :7], bias) is None


@compiled
@pytest.mark.parametrize("width", WIDTHS)
def test_lengths_of_rows_that_are_not_formed(width: int) -> None:
    R = min(3, width)
    e = torch.linspace(0.9, 0.3, R)
    W = (e.sqrt()[:, None] * torch.linalg.qr(random(width, R)).Q.T).contiguous()
    x = append_ones(random(40, width - 1, seed=1)) if width > 1 else random(40, 1, seed=1)  # rows that lie apart
    whole, some = Preconditioned(x), Preconditioned(x, W, 2.0 - e)
    compiled_whole, compiled_some = Preconditioned(x), Preconditioned(x, W, 2.0 - e)
    weight = torch.zeros(width, width)
    assert descend([Trained(weight, None, compiled_whole, compiled_some)], 0.0, 1.0) == [False]
    for ours in (some, compiled_some):
        torch.testing.assert_close(ours.H, x @ W.T, rtol=1e-4, atol=1e-5)
        x_hat = x - x @ W.T @ W
        torch.testing.assert_close(ours.formed(), x_hat, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.lengths, x_hat.norm(dim=1), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.traces, torch.stack((x.square().sum(), x_hat.square().sum())))
    for ours in (whole, compiled_whole):
        assert ours.H is None
        torch.testing.assert_close(ours.lengths, x.norm(dim=1))
        assert ours.traces.tolist() == [1.0, 1.0]


@compiled
@pytest.mark.parametrize("m", [0.0, 1e-4, 1e4])
@pytest.mark.parametrize("N", [3, 60])
@pytest.mark.parametrize("low_rank", [False, True])
@pytest.mark.parametrize("bias", ["beside", "apart", None])
def test_the_step_of_a_layer(m: float, N: int, low_rank: bool, bias: str | None) -> None:
    """Beside the formulas of the optimiser's docstring; of few rows Y^ is formed, of many it is not."""
    D_in, D_out = 4, 17
    room = random(D_out, 16, seed=6)
    expected = room.clone()
    layers, changes = [], []
    for seed in (0, 5):  # the second layer's step is made of other rows, on top of the first's
        sides = []
        for D, ones in ((D_in + 1, bias is not None), (D_out, False)):
            seed += 1
            rows = append_ones(random(N, D - 1, seed=seed)) if ones else random(N, D - (not ones and D < 9), seed=seed)
            estimate = an_estimate(3, rows.shape[1])
            low = (estimate.W_t, estimate.shrunk) if low_rank else ()
            sides.append((Preconditioned(rows, *low), Preconditioned(rows, *low)))
        (x, their_x), (y, their_y) = sides
        width = D_in + (bias is not None)
        weight = room[:, :D_in]
        vector = {"beside": room[:, D_in], "apart": room[:, D_in].clone(), None: None}[bias]
        free = 0.1
        for side in (their_x, their_y):
            before, after = side.traces.tolist()
            free *= math.sqrt(before / after)
        change = free * float(their_x.lengths @ their_y.lengths)
        s = free * min(1.0, m * N / change) if m else free
        step = s * their_y.formed().T @ their_x.formed()
        expected[:, :width] -= step
        layers.append(Trained(weight, vector, x, y))
        changes.append(vector)
    if bias == "apart":
        torch.testing.assert_close(layers[0].bias, layers[1].bias)
    assert descend(layers, 0.1, m) == [m == 1e-4] * 2
    if bias == "apart":
        torch.testing.assert_close(room[:, :D_in], expected[:, :D_in])
        steps = sum(vector - room[:, D_in] for vector in changes)
        torch.testing.assert_close(room[:, D_in] + steps, expected[:, D_in])
        return
    torch.testing.assert_close(room, expected)
    # A change that is not a number is no reason to shorten the step, and is seen in the weights.
    layers[0].x.X[0, 0] = torch.nan
    descend(layers[:1], 0.1, m)
    assert room[:, 0].isnan().all()
    assert torch.equal(room[:, D_in + 1 :], expected[:, D_in + 1 :])


@compiled
def test_rows_of_zeros_make_no_step() -> None:
    """Where X^ is 0, gamma is 1."""
    estimate = an_estimate(3, 8)
    weight, y = random(8, 8), Preconditioned(torch.zeros(5, 8), estimate.W_t, estimate.shrunk)
    before = weight.clone()
    assert descend([Trained(weight, None, Preconditioned(random(5, 8)), y)], 0.1, 0.1) == [False]
    assert torch.equal(weight, before)


@compiled
def test_a_layer_that_does_not_fit_is_left_to_others() -> None:
    weight = random(8, 8)
    fits = Trained(weight, None, Preconditioned(random(5, 8)), Preconditioned(random(5, 8, seed=1)))
    before = weight.clone()
    others = [
        fits._replace(weight=weight.double()),
        fits._replace(weight=weight.T),
        fits._replace(bias=torch.zeros(8)),  # whose column of ones is missing
        fits._replace(x=Preconditioned(random(5, 8).double())),
        fits._replace(y=Preconditioned(random(8, 5).T)),
        fits._replace(y=Preconditioned(random(5, 9))),
        fits._replace(y=Preconditioned(random(4, 8))),
    ]
    assert descend(others, 0.1, 0.0) == [None] * len(others)
    assert torch.equal(weight, before)
    assert descend([others[0], fits, others[1]], 0.1, 0.0) == [None, False, None]
    torch.testing.assert_close(weight, before - 0.1 * fits.y.X.T @ fits.x.X)
    assert descend([], 0.1, 0.0) == []
    torch.testing.assert_close(fits.x.lengths, fits.x.X.norm(dim=1))  # which a step without limit does not measure
