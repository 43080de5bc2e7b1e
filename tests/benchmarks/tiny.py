"""A plan of measurements that takes a fraction of a second."""

from fwrnn.benchmarks.suites import Plan

TINY = Plan(
    "quick",
    growth_batch=2,
    lengths=(3, 6),
    widths=(4, 8),
    budget=0.0,
    patience=60.0,
    memory=2**30,
    samples=2,
    sample_seconds=0.0,
    product=32,
    batch=2,
    steps=((3, 4, 5), (4, 4, 6)),
    growth=(3, 6),
    small=((3, 1, 4, 5), (4, 1, 4, 5)),
    cells=((1, 4, 5),),
)
