"""The CPU backend: where it is available, what it supports, and that it is the same on every processor."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import cffi
import pytest
import torch
from torch._subclasses import FakeTensorMode

from ngsgd.ops import AffineLayer, FisherUpdate, InputTransform, Norm, OutputLoss, PreconditionerInput, cpu

from .helpers import needs_cpu_backend, random, random_fisher

SOURCES = Path(cpu.__file__).parent


def test_available_where_a_compiler_is() -> None:
    assert cpu.is_available or shutil.which("gcc") is None


@needs_cpu_backend
def test_supports_contiguous_float32_on_the_cpu() -> None:
    x = random(4, 6)
    assert cpu.is_supported(x)
    for unsupported in (x.double(), x.T, x[:, :3], x.to("meta")):
        assert not cpu.is_supported(unsupported)
    with FakeTensorMode():
        assert not cpu.is_supported(torch.empty(4, 6))


@pytest.fixture
def generic_library(tmp_path: Path) -> Any:
    """The kernels compiled without instructions that only some processors have."""
    library = tmp_path / "kernels.so"
    options = ["-O3", "-fno-math-errno", "-ffp-contract=off", "-DKERNEL=", "-shared", "-fPIC"]
    subprocess.run(["gcc", *options, *map(str, SOURCES.glob("*.c")), "-o", str(library), "-lm"], check=True)
    ffi = cffi.FFI()
    ffi.cdef((SOURCES / "interface.h").read_text())
    torch_cpu = ctypes.CDLL(str(next(Path(torch.__file__).with_name("lib").glob("libtorch_cpu.*"))))
    addresses = (ctypes.cast(getattr(torch_cpu, name), ctypes.c_void_p).value for name in ("sgemm_", "dsyevd_"))
    lib = ffi.dlopen(str(library))
    lib.set_blas(*(ffi.cast("void *", address) for address in addresses))
    return ffi, lib


def results_of_every_function() -> list[bytes]:
    N, k, G, R, C = 50, 5, 83, 21, 39
    x, dy, labels = random(N, k, G), random(N, G, seed=1), torch.arange(N) % C
    y, scale = cpu.two_norm(x, normalized=True)
    z, z_scale = cpu.normalize(y)
    results = [y, scale, z, z_scale, cpu.normalize_backward(z, z_scale, dy), cpu.append_ones(y)]
    results.append(cpu.two_norm_backward_(x.clone(), y, scale, dy))

    matrix, upper = random(k * G, k * G + 1, seed=3), random(C, G + 1, seed=4)
    layers = [
        AffineLayer(matrix[:, : k * G], matrix[:, k * G], Norm(k, normalized=True)),
        AffineLayer(upper[:, :G], upper[:, G]),
    ]
    passed = cpu.forward_backward(x.view(N, -1), layers, InputTransform(), OutputLoss(random(C, seed=5), labels))
    results += [passed.loss, passed.correct, *(rows for pair in passed.rows for rows in pair)]

    side = PreconditionerInput(x.view(N, -1), random_fisher(R, k * G), FisherUpdate(4.0, 0.3))
    square = AffineLayer(random(k * G, k * G, seed=6), None)
    (step,) = cpu.preconditioned_step([square], [side], [side], 0.1, 1e-3)
    (updated,) = cpu.update_fisher([side])
    results.append(square.weight)
    for state, _ in (step.x_fisher, step.y_fisher, updated):
        results += [state.W_t, state.two_minus_e, state.d_t, torch.tensor(state.rho_t, dtype=torch.float64)]
    return [result.contiguous().numpy().tobytes() for result in results]


@needs_cpu_backend
@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_every_processor_gives_the_same_bytes(generic_library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    here = results_of_every_function()
    ffi, lib = generic_library
    monkeypatch.setattr(cpu, "ffi", ffi)
    monkeypatch.setattr(cpu, "lib", lib)
    assert results_of_every_function() == here
