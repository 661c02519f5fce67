"""The compiled functions beside PyTorch's operators, which do the same."""

from __future__ import annotations

import ctypes
import math
import shutil
import subprocess
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

import ngsgd.kernels.fisher
import ngsgd.kernels.native
import ngsgd.kernels.rows
from ngsgd.kernels.fisher import Given, solution_of, z_of
from ngsgd.kernels.native import library, serves
from ngsgd.kernels.rows import (
    append_ones,
    layer_step,
    normalize,
    normalize_derivative,
    row_lengths,
    side_by_side,
    two_norm,
    two_norm_derivative_,
)

WIDTHS = [1, 7, 16, 33, 80]
SOURCE = Path(ngsgd.kernels.native.__file__).with_name("kernels.c")

compiled = pytest.mark.skipif(library is None, reason="installed without a C compiler")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def operators(monkeypatch: pytest.MonkeyPatch):
    """What has a function computed by the operators."""

    def use(function, *args):
        with monkeypatch.context() as m:
            for module in (ngsgd.kernels.rows, ngsgd.kernels.fisher):
                m.setattr(module, "serves", lambda *tensors: False)
            return function(*args)

    return use


def test_they_are_there_where_a_compiler_is() -> None:
    assert library is not None or shutil.which("gcc") is None


def test_they_serve_floats_on_the_cpu_that_lie_row_after_row() -> None:
    x = random(4, 6)
    assert serves(x) == (library is not None)
    assert not serves(x.double())
    assert not serves(x.T)
    assert not serves(x, x[:, :3])
    assert not serves(x.to("meta"))
    with FakeTensorMode():
        assert not serves(torch.empty(4, 6))


@compiled
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("normalized", [False, True])
def test_norms_of_groups(operators, normalized: bool, width: int) -> None:
    groups = random(2, 3, 5, width)
    groups[0, 1] = 0.0  # below the floor
    groups[1, 2] = 1e-25  # squares that underflow
    groups[1, 1] = 1e-12  # below the floor, too
    (y, scale), dy = two_norm(groups, normalized=normalized), random(2, 3, width, seed=1)
    y_, scale_ = operators(lambda g: two_norm(g, normalized=normalized), groups)
    torch.testing.assert_close(y, y_)
    torch.testing.assert_close(scale, scale_)
    if normalized:
        assert (scale == 0.0).tolist() == [[False, True, False], [False, True, True]]
        torch.testing.assert_close(y, normalize(two_norm(groups, normalized=False)[0])[0])
    size = 1e-5 * (1.0 if scale is None else float(scale.max()))  # rounding: as in the test below
    expected = operators(two_norm_derivative_, groups.clone(), y, scale, dy)
    derivative = two_norm_derivative_(groups, y, scale, dy)
    assert derivative is groups
    torch.testing.assert_close(derivative, expected, rtol=1e-5, atol=size)
    assert not derivative[0, 1].any()


@compiled
@pytest.mark.parametrize("width", WIDTHS)
def test_rows_of_one_size(operators, width: int) -> None:
    x, dy = random(2, 3, width), random(2, 3, width, seed=1)
    x[0, 1] = 1e-11  # below the floor
    x[1, 0] = 0.0
    (y, scale), (y_, scale_) = normalize(x), operators(normalize, x)
    torch.testing.assert_close(y, y_)
    torch.testing.assert_close(scale, scale_)
    assert (scale == 0.0).tolist() == [[False, True, False], [True, False, False]]
    dx = normalize_derivative(y, scale, dy)
    # Along its own direction a row cannot be changed; what is left there is rounding.
    torch.testing.assert_close(
        dx, operators(normalize_derivative, y, scale, dy), rtol=1e-5, atol=1e-5 * float(scale.max())
    )


@compiled
@pytest.mark.parametrize("width", WIDTHS)
def test_rows_with_a_one(operators, width: int) -> None:
    x = random(9, width)
    rows = append_ones(x)
    assert torch.equal(rows, torch.cat((x, torch.ones(9, 1)), dim=1))
    assert torch.equal(rows, operators(append_ones, x))


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
def test_lengths_of_rows_that_are_not_formed(operators, width: int) -> None:
    R = min(3, width)
    e = torch.linspace(0.9, 0.3, R)
    W = e.sqrt()[:, None] * torch.linalg.qr(random(width, R)).Q.T
    x = append_ones(random(40, width - 1, seed=1)) if width > 1 else random(40, 1, seed=1)  # rows that lie apart
    H = x @ W.T
    lengths, traces = row_lengths(x, H, 2.0 - e)
    x_hat = x - H @ W
    torch.testing.assert_close(lengths, x_hat.norm(dim=1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(traces, torch.stack((x.square().sum(), x_hat.square().sum())))
    for ours, theirs in zip((lengths, traces), operators(row_lengths, x, H, 2.0 - e), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@compiled
def test_what_is_not_a_number_stays_so() -> None:
    x = random(3, 4, 16)
    x[1, 2, 3] = torch.nan
    y, _ = two_norm(x, normalized=False)
    z, scale = normalize(x[:, 0].contiguous() + y)
    both, their_scale = two_norm(x, normalized=True)
    for made in (y, z, both):
        assert made.isnan().any(dim=1).tolist() == [False, True, False]
    assert two_norm_derivative_(x.clone(), both, their_scale, torch.ones_like(y))[1].isnan().all()
    assert two_norm_derivative_(x, y, None, torch.ones_like(y))[1].isnan().any()
    assert normalize_derivative(z, scale, torch.ones_like(z))[1].isnan().all()
    assert row_lengths(z, random(3, 2), torch.ones(2))[0].isnan().tolist() == [False, True, False]


@compiled
@pytest.mark.parametrize("R", WIDTHS)
@pytest.mark.parametrize("size", [1e-3, 1e3])
def test_the_small_part_of_a_renewal(operators, R: int, size: float) -> None:
    generator = np.random.default_rng(R)
    D = R + 3
    K, L = (size * (m @ m.T) for m in (random(R, R), random(R, R, seed=1)))
    given = Given(torch.from_numpy(np.sort(generator.uniform(0.1, 2.0, R))[::-1].copy()), 0.05, 4.0, 0.3, 10, D)
    Z, trace = z_of(K, L, given)
    theirs, their_trace = operators(z_of, K, L, given)
    assert trace == pytest.approx(their_trace)
    torch.testing.assert_close(Z, theirs)
    torch.testing.assert_close(Z, Z.T)
    assert float(Z.trace()) == pytest.approx(min(1.0, trace))
    values, U = torch.linalg.eigh(Z)
    for least in (float(values[0]), -1.0, 1e-12):  # as it is; below the floor; far from the largest
        values[0] = least
        tr_XX = 100.0 * size * D
        ours, other = (f(solution_of, values, U, trace, tr_XX, given, K) for f in (lambda f, *a: f(*a), operators))
        for one, two in zip(ours, other, strict=True):
            if isinstance(one, Tensor):
                torch.testing.assert_close(one, two)
            else:
                assert one == pytest.approx(two)
        assert ours.doubtful or R == 1 or least > 1e-12
        # tr(F_{t+1}) is that of T_t, where no floor holds.
        expected = given.eta / given.N * tr_XX + (1.0 - given.eta) * (D * given.rho_t + float(given.d_t.sum()))
        if min(ours.rho_1, float(ours.d_1.min())) > 1e-3 * (ours.rho_1 + float(ours.d_1[0])):
            assert float(ours.d_1.sum()) + D * ours.rho_1 == pytest.approx(expected)


@compiled
def test_an_estimate_is_doubted_where_rounding_may_have_spoilt_it(operators) -> None:
    """Where eigenvalues are far apart, and where one is below the floor, 0.01^2; not else."""
    given, U = Given(torch.full((3,), 1.0, dtype=torch.float64), 0.02, 4.0, 0.5, 10, 9), torch.eye(3).double()
    for values, doubtful in (((1e-3, 0.5, 1.0), False), ((1.1e-4, 0.5, 109.0), False), ((1.1e-4, 0.5, 111.0), True),
                             ((0.9e-4, 0.5, 1.0), True)):  # fmt: skip
        arguments = (torch.tensor(values).double(), U, 1.0, 9.0, given, torch.empty(0))
        assert solution_of(*arguments).doubtful == doubtful
        assert operators(solution_of, *arguments).doubtful == doubtful


@compiled
@pytest.mark.parametrize("m", [0.0, 1e-4, 1e4])
def test_the_step_of_a_layer(m: float) -> None:
    """Beside the formulas of the optimiser's docstring."""
    x, y = random(7).abs(), random(7, seed=1).abs()
    before, after = torch.tensor([9.0, 4.0]), torch.tensor([3.0, 0.0])  # the second side is all zeros
    step, limited = layer_step((x, before), (y, after), 0.1, m)
    free = 0.1 * 1.5
    change = free * float(x @ y)
    assert limited == (m == 1e-4)
    assert step == pytest.approx(free * min(1.0, m * 7 / change) if m else free)
    assert math.isnan(layer_step((x, before * torch.nan), (y, after), 0.1, m)[0])


@compiled
@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_every_processor_gives_the_same_bytes(tmp_path: Path) -> None:
    """Those compiled for the instructions of this one, and for such as all have."""
    assert library is not None
    plain = tmp_path / f"plain{sysconfig.get_config_var('EXT_SUFFIX')}"
    options = ["-O3", "-fno-math-errno", "-ffp-contract=off", "-DKERNEL=", "-shared", "-fPIC"]
    subprocess.run(["gcc", *options, str(SOURCE), "-o", str(plain), "-lm"], check=True)
    others = ctypes.CDLL(str(plain))
    N, k, G, R = 50, 5, 83, 21
    K, d = random(R, R, seed=2), torch.linspace(0.1, 3.0, R).double()
    x, dy = random(N, k, G), random(N, G, seed=1)
    made = []
    for functions in (library, others):
        y, z, scale, dx, lengths, traces = (torch.empty(n) for n in ((N, G), (N, G), N, (N, G), N, 2))
        derivative, factor = x.clone(), torch.empty(G)
        room, d_1, Z = torch.empty(R).double(), torch.empty(R).double(), torch.empty(R, R).double()
        A, B, shrunk, number, numbers = torch.empty(R, R), torch.empty(R), torch.empty(R), ctypes.c_int(), []
        for name, arguments in {
            "two_norm": (x, y, scale, N, k, G, 1e-20),
            "two_norm_derivative": (
                derivative, y, scale, dy, factor, N, k, G, 1e-20, 1e-20,
            ),
            "normalize": (y, z, scale, N, G, 1e-20),
            "normalize_derivative": (z, scale, dy, dx, N, G, 1e-20),
            "row_lengths": (x, N, k * G, k * G, dx, y, G, lengths, traces),
            "layer_step": (lengths, traces, lengths, traces, N, 0.1, 1e-3, number),
            "fisher_z": (K, K, d, 0.1, 4.0, 0.3, N, 2 * R, room, Z, R),
            "fisher_solution": (
                d, Z, 2.0, 9.0, d, 0.1, 4.0, 0.3, N, 2 * R, 1e-10, 5e-4, 1e6, room, A, B, shrunk, d_1, number, R,
            ),
        }.items():  # fmt: skip
            values = (a.data_ptr() if isinstance(a, Tensor) else a for a in arguments)
            function = getattr(functions, name)
            function.restype = getattr(library, name).restype
            function.argtypes = getattr(library, name).argtypes
            numbers += [function(*values), number.value]
        arrays = (y, z, scale, dx, derivative, lengths, traces, Z, A, B, shrunk, d_1)
        made.append([t.numpy().tobytes() for t in arrays] + numbers)
    assert made[0] == made[1]
