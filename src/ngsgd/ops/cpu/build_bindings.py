"""Builds the kernels with their Python bindings; setup.py names `ffi` to the installation, which compiles it."""

from pathlib import Path

import cffi

FOLDER = Path(__file__).parent
# setuptools takes sources relative to the root of the project only.
SOURCES = [f"src/ngsgd/ops/cpu/{name}.c" for name in ("blas", "fisher", "network", "rows", "step")]

ffi = cffi.FFI()
ffi.cdef((FOLDER / "interface.h").read_text(encoding="utf-8"))
ffi.set_source(
    "ngsgd.ops.cpu._kernels",
    '#include "interface.h"',
    sources=SOURCES,
    include_dirs=["src/ngsgd/ops/cpu"],
    depends=["src/ngsgd/ops/cpu/kernels.h", "src/ngsgd/ops/cpu/interface.h"],
    # Products that are not contracted with sums give the same bytes on every processor.
    extra_compile_args=["-O3", "-fno-math-errno", "-ffp-contract=off"],
    # Without a C compiler the installation succeeds, and the reference backend is used, which is slower.
    optional=True,
)
