from __future__ import annotations

from types import ModuleType

import pytest

from ngsgd.ops import cpu, reference


@pytest.fixture(params=[reference, cpu], ids=["reference", "cpu"])
def backend(request: pytest.FixtureRequest) -> ModuleType:
    """Each backend; its results in float32 are compared with those of the reference backend in float64."""
    if request.param is cpu and not cpu.is_available:
        pytest.skip("installed without a C compiler")
    return request.param
