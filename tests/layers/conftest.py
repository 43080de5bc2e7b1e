import pytest


@pytest.fixture
def untried(monkeypatch):
    """As at the start of a process: no kernel was tried, and none is relied on."""
    from fwrnn.layers.kernels import sequences, steps, trial

    monkeypatch.setattr(trial, "_passed", set())
    monkeypatch.setattr(trial, "_failed", set())
    plans = sequences._plan, steps._plan
    for cache in plans:
        cache.cache_clear()
    yield
    for cache in plans:
        cache.cache_clear()
