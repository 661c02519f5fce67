"""The compiled functions: that they are there, for what, and that they are the same everywhere."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

import ngsgd.kernels.native
from ngsgd.kernels.native import Base, Layer, Renewal, Step, Top, library, serves

from .helpers import an_estimate, compiled, random

SOURCES = Path(ngsgd.kernels.native.__file__).parent


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
@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_every_processor_gives_the_same_bytes(tmp_path: Path) -> None:
    """Those compiled for the instructions of this one, and for such as all have."""
    assert library is not None
    plain = tmp_path / f"plain{sysconfig.get_config_var('EXT_SUFFIX')}"
    options = ["-O3", "-fno-math-errno", "-ffp-contract=off", "-DKERNEL=", "-shared", "-fPIC"]
    subprocess.run(["gcc", *options, *map(str, SOURCES.glob("*.c")), "-o", str(plain), "-lm"], check=True)
    others = ctypes.CDLL(str(plain))
    N, k, G, R, C = 50, 5, 83, 21, 39
    estimate = an_estimate(R, k * G)
    x, dy, labels = random(N, k, G), random(N, G, seed=1), torch.arange(N) % C
    made = []
    torchs = ctypes.CDLL(str(next(Path(torch.__file__).with_name("lib").glob("libtorch_cpu.*"))))
    others.use(*(ctypes.cast(getattr(torchs, name), ctypes.c_void_p) for name in ("sgemm_", "dsyevd_")))
    for functions in (library, others):
        y, z, scale, dx = (torch.empty(n) for n in ((N, G), (N, G), N, (N, G)))
        derivative, factor = x.clone(), torch.empty(G)
        W_1, shrunk, d_1 = torch.empty(R, k * G), torch.empty(R), torch.empty(R).double()
        renewal = Renewal(
            estimate.d_t.data_ptr(), 0.1, 4.0, 0.3, 1e-10, 5e-4, 1e6, 1e-3, W_1.data_ptr(), shrunk.data_ptr(),
            d_1.data_ptr(),
        )  # fmt: skip
        weight, numbers = random(k * G, k * G + 1, seed=3), []
        layers, steps, room = (Layer * 2)(), (Step * 1)(), torch.zeros(400_000)
        lower, upper, step = *layers, steps[0]
        lower.W, lower.W_stride, lower.D, lower.k, lower.G, lower.norm = weight.data_ptr(), k * G + 1, k * G, k, G, 2
        upper.W, upper.W_stride, upper.D, upper.k, upper.G = weight.data_ptr(), G + 1, G, 1, C
        base, top = Base(k * G, None, 1, 1, 1), Top(dy.data_ptr(), labels.data_ptr())
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
            "there_and_back": (base, layers, 2, top, x, N, x.numel(), room, 1e-20, 1e-20),
            "descend": (steps, 1, room, 0.1, 1e-3),
            "renew": (renewal, x, N, k * G, k * G, H, estimate.W_t, R, 9.0),
        }.items():  # fmt: skip
            values = (a.data_ptr() if isinstance(a, Tensor) else a for a in arguments)
            function = getattr(functions, name)
            function.restype = getattr(library, name).restype
            function.argtypes = getattr(library, name).argtypes
            numbers += [function(*values), renewal.rho_1, renewal.doubtful, renewal.outcome]
            if name == "there_and_back":
                numbers += [top.loss, top.correct, room.numpy().tobytes()]
        arrays = (y, z, scale, dx, derivative, weight, room, W_1, shrunk, d_1)
        made.append([t.numpy().tobytes() for t in arrays] + numbers)
    assert made[0] == made[1]
