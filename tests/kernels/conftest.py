from __future__ import annotations

import pytest

import ngsgd.kernels.native


@pytest.fixture
def operators(monkeypatch: pytest.MonkeyPatch):
    """What has a function computed by the operators."""

    def use(function, *args):
        with monkeypatch.context() as m:
            m.setattr(ngsgd.kernels.native, "library", None)
            return function(*args)

    return use
