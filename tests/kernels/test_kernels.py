"""The compiled functions beside PyTorch's operators, which do the same."""

from __future__ import annotations

import ctypes
import math
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

import ngsgd.kernels.native
from ngsgd.kernels.fisher import EPSILON, Given, renewed, shares, solution_of
from ngsgd.kernels.native import Layer, Step, library, serves
from ngsgd.kernels.rows import append_ones, normalize, normalize_derivative, two_norm, two_norm_derivative_
from ngsgd.kernels.stack import AffineLayer, Norm, backwards, forwards
from ngsgd.kernels.step import Preconditioned, Trained, descend, side_by_side
from ngsgd.optim.online import FisherEstimate, Renewal, update

WIDTHS = [1, 7, 16, 33, 80]
SOURCES = Path(ngsgd.kernels.native.__file__).parent

compiled = pytest.mark.skipif(library is None, reason="installed without a C compiler")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def operators(monkeypatch: pytest.MonkeyPatch):
    """What has a function computed by the operators."""

    def use(function, *args):
        with monkeypatch.context() as m:
            m.setattr(ngsgd.kernels.native, "library", None)
            return function(*args)

    return use


def test_they_are_there_where_a_compiler_is() -> None:
    assert library is not None or shutil.which("gcc") is None


def test_they_serve_floats_on_the_cpu_that_lie_row_after_row() -> None:
    x = random(4, 6)
    assert serves(x) == (library is not None)
    assert not serves(x.double())
    assert not serves(x.T)
    assert not serves(x[:, :3])
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
@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("above", [None, Norm(2, normalized=False)])
@pytest.mark.parametrize("wanted", [False, True])
def test_layers_are_passed_through(normalized: bool, above: Norm | None, wanted: bool) -> None:
    """Two of them, the upper one on three outputs of the lower one side by side; beside PyTorch's operators."""
    x, lower, upper = random(4, 6, 7), random(15, 16, seed=1), random(10, 16, seed=2)
    given = [
        AffineLayer(lower[:, :7], lower[:, 7], Norm(5, normalized=normalized)),
        AffineLayer(upper[:, :9], upper[:, 9], above),
    ]
    leaf = x.clone().requires_grad_()
    values, inputs, zs = leaf, [], []
    for weight, bias, norm in given:
        inputs.append(append_ones(values.detach().reshape(-1, weight.shape[1])))
        z = torch.nn.functional.linear(values, weight, bias)
        z.retain_grad()
        zs.append(z)
        values = z
        if norm is not None:
            values = z.view(*z.shape[:-1], norm.k, -1).norm(dim=-2)
            if norm.normalized:
                values = values / values.square().mean(dim=-1, keepdim=True).sqrt()
        if norm is given[0].norm:
            values = values.reshape(4, 2, 9)
    passed = forwards(x, given)
    assert passed is not None
    torch.testing.assert_close(passed.y, values.detach())
    dy = random(*values.shape, seed=3)
    values.backward(dy)
    dx = torch.empty_like(x) if wanted else None
    # What is kept for the way back may be a copy by then, as may the weights.
    weights, norms = [layer.weight.clone() for layer in given], [layer.norm for layer in given]
    room, y = torch.cat((torch.zeros(5), passed.room))[5:], passed.y.clone() if above else None
    passed.room.fill_(torch.nan)
    for (rows, dz), expected, z in zip(backwards(room, y, weights, norms, 168, dy, dx), inputs, zs, strict=True):
        torch.testing.assert_close(rows, expected)
        torch.testing.assert_close(dz, z.grad.view(dz.shape), rtol=1e-4, atol=1e-5)
    if dx is not None:
        torch.testing.assert_close(dx, leaf.grad, rtol=1e-4, atol=1e-5)


@compiled
def test_layers_are_passed_through_only_where_all_fits() -> None:
    room, upper = random(15, 16), random(5, 16)
    layer = AffineLayer(room[:, :7], room[:, 7], None)
    assert forwards(random(3, 7), [layer]) is not None
    assert forwards(random(7), [layer]).y.shape == (15,)
    for x in (random(3, 6), random(0, 7), random(3, 7).double(), random(7, 3).T):
        assert forwards(x, [layer]) is None
    assert forwards(random(3, 7), [layer._replace(bias=layer.bias.clone())]) is None
    # 5 x 3 outputs are no inputs of 4, those of four places none of 9 for each, nor those of seven places of 6.
    lower = layer._replace(norm=Norm(5, normalized=True))
    for D, x in ((4, random(5, 7)), (9, random(3, 4, 7)), (6, random(2, 7, 7))):
        assert forwards(x, [lower, AffineLayer(upper[:, :D], upper[:, D], None)]) is None
    assert forwards(random(3, 2, 7), [lower, AffineLayer(upper[:, :6], upper[:, 6], None)]).y.shape == (3, 1, 5)


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
    rows = Preconditioned(z, random(2, 16), torch.ones(2))
    descend([Trained(torch.zeros(16, 16), None, rows, Preconditioned(z))], 0.1, 1.0)
    assert rows.lengths.isnan().tolist() == [False, True, False]


def an_estimate(R: int, D: int) -> FisherEstimate:
    d_t = torch.linspace(2.0, 0.1, R).double()
    e_t = torch.linspace(0.8, 0.4, R)
    W_t = e_t.sqrt()[:, None] * torch.linalg.qr(random(D, R, seed=2)).Q.T
    return FisherEstimate(W_t.contiguous(), 2.0 - e_t, d_t, 0.05)


@compiled
@pytest.mark.parametrize("N", [5, 90])
@pytest.mark.parametrize("R", WIDTHS)
@pytest.mark.parametrize("size", [1e-2, 1e2])
def test_a_renewal(operators, R: int, size: float, N: int) -> None:
    D = R + 3
    estimate, X = an_estimate(R, D), append_ones(size * random(N, D - 1))
    H, trace = X @ estimate.W_t.T, X.square().sum()
    renewal = Renewal(estimate, X, H, trace, 4.0, 0.3)
    made = renewed(X, H, estimate.W_t, trace, renewal.given())
    assert made is not None
    (theirs,) = operators(update, [renewal])
    if not made.doubtful:
        signs = (made.W_1 * theirs.W_t).sum(dim=1, keepdim=True).sign()  # an eigenvector has either
        torch.testing.assert_close(made.W_1, signs * theirs.W_t, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(made.shrunk, theirs.shrunk, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(made.d_1, theirs.d_t, rtol=1e-3, atol=1e-3 * float(theirs.d_t[0]))
    assert made.rho_1 == pytest.approx(theirs.rho_t, rel=1e-3)
    # tr(F_{t+1}) is that of T_t, where no floor holds.
    expected = 0.3 / N * float(trace) + 0.7 * (D * 0.05 + float(estimate.d_t.sum()))
    if min(made.rho_1, float(made.d_1.min())) > 1e-3 * (made.rho_1 + float(made.d_1[0])):
        assert float(made.d_1.sum()) + D * made.rho_1 == pytest.approx(expected, rel=1e-4)


@compiled
def test_a_renewal_of_what_is_not_finite(operators) -> None:
    estimate = an_estimate(2, 6)
    for X in (torch.full((4, 6), torch.nan), torch.full((4, 6), 1e25)):
        renewal = Renewal(estimate, X, X @ estimate.W_t.T, X.square().sum(), 4.0, 0.3)
        for function in (update, lambda r: operators(update, r)):
            with pytest.raises(FloatingPointError, match="not finite, or overflow"):
                function([renewal])


@compiled
def test_an_estimate_is_doubted_where_rounding_may_have_spoilt_it() -> None:
    """Where eigenvalues are far apart, and where one is below the floor, 0.01^2; not else. Compiled: after a look."""
    given, U = Given(torch.full((3,), 1.0, dtype=torch.float64), 0.02, 4.0, 0.5, 10, 9), torch.eye(3).double()
    for values, doubtful in (((1e-3, 0.5, 1.0), False), ((1.1e-4, 0.5, 109.0), False), ((1.1e-4, 0.5, 111.0), True),
                             ((0.9e-4, 0.5, 1.0), True)):  # fmt: skip
        assert solution_of(torch.tensor(values).double(), U, 1.0, 9.0, given, torch.empty(0)).doubtful == doubtful
    # Compiled: of rows along the estimate's own directions the eigenvalues are their squared lengths' squares.
    d_t = torch.full((3,), EPSILON, dtype=torch.float64)
    W = torch.eye(3, 9) * float(shares(d_t, EPSILON, 4.0, 9)[0]) ** 0.5
    spoilt = W.clone()
    spoilt[2, 0] = 0.1 * W[0, 0]
    for longest, W_t, doubtful in ((31.0, spoilt, False), (32.0, spoilt, True), (32.0, W, False)):
        X = torch.eye(3, 9) * torch.tensor([[longest], [2.0], [1.0]])
        made = renewed(X, X @ W_t.T, W_t, X.square().sum(), Given(d_t, EPSILON, 4.0, 0.5, 3, 9))
        assert made is not None
        assert made.doubtful == doubtful
    # Of rows of zeros they are (0.5 (d + rho))^2, none of which is below the floor.
    d_t = torch.tensor([1.0, 1e-9, 1e-9], dtype=torch.float64)
    made = renewed(torch.zeros(3, 9), torch.zeros(3, 3), W, torch.tensor(0.0), Given(d_t, 0.02, 4.0, 0.5, 3, 9))
    assert made is not None
    assert not made.doubtful


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


@compiled
@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_every_processor_gives_the_same_bytes(tmp_path: Path) -> None:
    """Those compiled for the instructions of this one, and for such as all have."""
    assert library is not None
    plain = tmp_path / f"plain{sysconfig.get_config_var('EXT_SUFFIX')}"
    options = ["-O3", "-fno-math-errno", "-ffp-contract=off", "-DKERNEL=", "-shared", "-fPIC"]
    subprocess.run(["gcc", *options, *map(str, SOURCES.glob("*.c")), "-o", str(plain), "-lm"], check=True)
    others = ctypes.CDLL(str(plain))
    N, k, G, R = 50, 5, 83, 21
    estimate = an_estimate(R, k * G)
    x, dy = random(N, k, G), random(N, G, seed=1)
    made = []
    torchs = ctypes.CDLL(str(next(Path(torch.__file__).with_name("lib").glob("libtorch_cpu.*"))))
    others.use(*(ctypes.cast(getattr(torchs, name), ctypes.c_void_p) for name in ("sgemm_", "dsyevd_")))
    for functions in (library, others):
        y, z, scale, dx = (torch.empty(n) for n in ((N, G), (N, G), N, (N, G)))
        derivative, factor = x.clone(), torch.empty(G)
        W_1, shrunk, d_1, rho_1 = torch.empty(R, k * G), torch.empty(R), torch.empty(R).double(), ctypes.c_double()
        weight, number, numbers = random(k * G, k * G + 1, seed=3), ctypes.c_int(), []
        layers, steps, room = (Layer * 1)(), (Step * 1)(), torch.zeros(400_000)
        layer, step = layers[0], steps[0]
        layer.W, layer.W_stride, layer.D, layer.k, layer.G, layer.norm = weight.data_ptr(), k * G + 1, k * G, k, G, 2
        for side in (step.x, step.y):
            side.X, side.D, side.stride, side.R = x.data_ptr(), k * G, k * G, R
            side.W, side.shrunk = estimate.W_t.data_ptr(), estimate.shrunk.data_ptr()
        step.N, step.W, step.stride, step.columns = N, weight.data_ptr(), k * G + 1, k * G
        H = x.view(N, -1) @ estimate.W_t.T
        for name, arguments in {
            "two_norm": (x, y, scale, N, k, G, 1e-20),
            "two_norm_derivative": (derivative, y, scale, dy, factor, N, k, G, 1e-20, 1e-20),
            "normalize": (y, z, scale, N, G, 1e-20),
            "normalize_derivative": (z, scale, dy, dx, N, G, 1e-20),
            "forwards": (layers, 1, x, x.numel(), room, z, 1e-20),
            "backwards": (layers, 1, dy, None, 1e-20, 1e-20),
            "descend": (steps, 1, room, 0.1, 1e-3),
            "renew": (
                x, N, k * G, k * G, H, estimate.W_t, estimate.d_t, 0.1, 9.0, 4.0, 0.3, 1e-10, 5e-4, 1e6, 1e-3, W_1,
                shrunk, d_1, rho_1, number, R,
            ),
        }.items():  # fmt: skip
            values = (a.data_ptr() if isinstance(a, Tensor) else a for a in arguments)
            function = getattr(functions, name)
            function.restype = getattr(library, name).restype
            function.argtypes = getattr(library, name).argtypes
            numbers += [function(*values), number.value, rho_1.value]
            if name == "backwards":
                numbers.append(room.numpy().tobytes())
        arrays = (y, z, scale, dx, derivative, weight, room, W_1, shrunk, d_1)
        made.append([t.numpy().tobytes() for t in arrays] + numbers)
    assert made[0] == made[1]
