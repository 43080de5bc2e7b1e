"""Seeds, one thread, and configurations small enough to train in a second."""

import pytest
import torch

TINY = [
    "model.hidden_size=8",
    "task.train_size=512",
    "task.val_size=128",
    "task.test_size=128",
    "trainer.max_updates=20",
    "trainer.warmup=0",
    "trainer.batch_size=32",
    "trainer.evaluate_every=5",
    "trainer.log_every=5",
    "threads=1",
]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tiny() -> list[str]:
    """Overrides for a run that takes a second."""
    return list(TINY)
