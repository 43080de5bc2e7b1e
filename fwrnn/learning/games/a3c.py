"""The asynchronous form of the actor-critic: workers that share weights and Adam's statistics.

Mnih et al. (arXiv:1602.01783). Each worker is a process: it copies the shared weights, plays, and
applies its gradients to the shared ones, whatever the others have made of them meanwhile. Ours:
Adam in the place of RMSProp, as in the synchronous form; a lock around its step, so that no update
is lost; and several games per update (``games``), because one at a time leaves a processor idle.
A worker goes on once its update has been counted: a validation is of weights that are at most an
update of each worker ahead of their number, however long it takes.
"""

import copy
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import cast

import torch
from torch import Tensor, multiprocessing, nn

from fwrnn.errors import RunFailed, UserError
from fwrnn.interfaces import GameTask
from fwrnn.learning.adam import Adam
from fwrnn.learning.games.actor_critic import (
    PlayingTrainer,
    actor_critic_loss,
    entropy_cost,
    measured,
)
from fwrnn.learning.games.play import play
from fwrnn.learning.loop import learning_rate
from fwrnn.learning.schema import A3CConfig
from fwrnn.learning.signals import STOPPING, Stopped, leave_to_parent

CPU = torch.device("cpu")
GLANCE = 0.1  # seconds between two looks at whether to stop


class A3CTrainer(PlayingTrainer):
    """Workers train; this process counts their updates, logs, validates and saves.

    Takes what ``A2CTrainer`` takes. Two runs of the same seed differ: which worker comes first is
    the machine's affair. A run that was stopped goes on from its weights and statistics.

    Raises:
        UserError: a device other than the CPU.
    """

    def __init__(self, model, task, config, seed, device, folder):
        if device.type != "cpu":
            raise UserError(f"trainer=a3c shares memory on the CPU, got device={device}; set cpu")
        super().__init__(model, task, config, device, folder)
        self.seed = seed
        self._context = multiprocessing.get_context("spawn")
        self._lock = PipeLock(self._context) if os.name == "posix" else self._context.Lock()
        self._workers: dict[Connection, BaseProcess] = {}
        self._snapshot = copy.deepcopy(model)

    @property
    def validated_model(self) -> nn.Module:
        """The weights as they were at the last validation: the shared ones go on changing."""
        return self._snapshot

    def fit(self, *arguments, **options) -> str:
        try:
            return super().fit(*arguments, **options)
        finally:
            self.close()

    def update(self) -> dict[str, Tensor]:
        """Wait for the next update of any worker, or for the wish to stop."""
        if not self._workers:
            self._start()
        self.set_learning_rate()
        while self._workers:
            ready = wait(list(self._workers), GLANCE)
            if not ready and self.stop.requested:
                raise Stopped
            for connection in cast(list[Connection], ready):  # no sockets among them
                try:
                    news = connection.recv()
                except (EOFError, OSError):
                    self._dismiss(connection)
                    continue
                if isinstance(news, str):
                    raise RunFailed(f"a worker failed: {news}")
                with suppress(OSError):  # it has died since
                    connection.send(None)
                self.frames += news.pop("frames")
                return {name: torch.tensor(value) for name, value in news.items()}
        raise RunFailed("the workers ended before the last update; the run can be resumed")

    def _dismiss(self, connection: Connection) -> None:
        """See off a worker that has nothing more to tell: no update is left for it."""
        worker = self._workers.pop(connection)
        worker.join()
        connection.close()
        if worker.exitcode:
            raise RunFailed(
                f"a worker ended with exit code {worker.exitcode}; the run can be resumed"
            )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Nobody changes the weights meanwhile. A worker that died may have died with the lock."""
        while not self._lock.acquire(timeout=1):
            if any(worker.exitcode for worker in self._workers.values()):
                raise RunFailed("a worker died while it changed the weights; resume the run")
        try:
            yield
        finally:
            self._lock.release()

    def settle(self) -> None:
        with self._locked():
            self._snapshot.load_state_dict(self.model.state_dict())

    def content(self) -> dict:
        with self._locked():
            return copy.deepcopy(super().content())

    def _start(self) -> None:
        """Share what is to be shared and start the workers.

        They inherit that signals to stop wait, which reach all processes of a terminal or a batch
        job: this one ends them. One that comes meanwhile comes to this process afterwards.
        """
        self.model.share_memory()
        statistics = [self._statistics(parameter) for parameter in self.model.parameters()]
        tickets = torch.tensor(self.progress.update).share_memory_()
        shared = self.model, statistics, self.task, self.config, tickets, self._lock
        before = set()
        if os.name == "posix":
            resource_tracker.ensure_running()  # which would have the signals through again
            before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        try:
            for number in range(self.config.workers):
                ours, theirs = self._context.Pipe()
                seed = self.seed + 1_000_003 * (number + 1) + self.progress.update
                worker = self._context.Process(
                    target=work, args=(*shared, seed, theirs), daemon=True
                )
                worker.start()
                theirs.close()
                self._workers[ours] = worker
        finally:
            if os.name == "posix":
                signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _statistics(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """Adam's state of a parameter, in shared memory."""
        state = self.optimizer.state_of(parameter)
        for tensor in state.values():
            tensor.share_memory_()
        return state

    def close(self) -> None:
        """End the workers wherever they are: what there is to keep of them has been saved."""
        for connection, worker in self._workers.items():
            connection.close()
            worker.kill()
        for worker in self._workers.values():
            worker.join()
        self._workers = {}


class PipeLock:
    """A lock among processes: who took the byte out of the pipe has it.

    Those of ``multiprocessing`` are files of the system, which stay when all of its processes are
    killed together, as the end of a batch job does.
    """

    def __init__(self, context):
        self._reader, self._writer = context.Pipe(duplex=False)
        os.set_blocking(self._reader.fileno(), False)
        self.release()

    def acquire(self, timeout: float | None = None) -> bool:
        """Whether it was had within ``timeout`` seconds, if that is given."""
        while wait([self._reader], timeout):
            try:
                return bool(os.read(self._reader.fileno(), 1))
            except BlockingIOError:  # another was faster
                continue
        return False

    def release(self) -> None:
        os.write(self._writer.fileno(), b".")

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *exception) -> None:
        self.release()


def work(
    model: nn.Module,
    statistics: list[dict[str, Tensor]],
    task: GameTask,
    config: A3CConfig,
    tickets: Tensor,
    lock,
    seed: int,
    connection: Connection,
) -> None:
    """A worker: updates until there are no more. ``tickets`` () int64 is the next one's number."""
    leave_to_parent()
    try:
        torch.set_num_threads(1)
        torch.manual_seed(seed)
        optimizer = Adam(model.parameters(), config.learning_rate)
        for parameter, state in zip(model.parameters(), statistics, strict=True):
            optimizer.state[parameter] = state
        local, games = copy.deepcopy(model), task.games(config.games)
        while True:
            with lock:
                update = int(tickets)
                tickets += 1
            if update >= config.max_updates:
                break
            news = one_update(model, local, optimizer, games, task, config, update, lock)
            tell(connection, news)
            heard(connection)
    except Exception as error:
        tell(connection, f"{type(error).__name__}: {error}")


def tell(connection: Connection, news: dict | str) -> None:
    try:
        connection.send(news)
    except OSError:
        os._exit(0)  # the one who listened has gone


def heard(connection: Connection) -> None:
    """Wait until what was told has been counted."""
    try:
        connection.recv()
    except (EOFError, OSError):
        os._exit(0)


def one_update(model, local, optimizer, games, task, config, update: int, lock) -> dict:
    """Play with a copy of the shared weights and apply its gradients to them."""
    local.load_state_dict(model.state_dict())
    episodes = play(local, games, task.seed_of("train", update), CPU)
    local.zero_grad()
    losses = actor_critic_loss(local, episodes, config, entropy_cost(update, config))
    losses.loss.backward()
    if config.clip_norm is not None:
        nn.utils.clip_grad_norm_(local.parameters(), config.clip_norm)
    for shared, mine in zip(model.parameters(), local.parameters(), strict=True):
        shared.grad = mine.grad
    with lock:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(update, config)
        optimizer.step()
    found = {name: value.item() for name, value in measured(losses, episodes).items()}
    return {**found, "frames": episodes.frames}
