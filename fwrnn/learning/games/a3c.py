"""The asynchronous form of the actor-critic: workers that share weights and Adam's statistics.

Mnih et al. (arXiv:1602.01783). Each worker is a process: it copies the shared weights, plays, and
applies its gradients to the shared ones, whatever the others have made of them meanwhile. Ours:
Adam in the place of RMSProp, as in the synchronous form; a lock around its step, so that no update
is lost; and several games per update (``games``), because one at a time leaves a processor idle.
"""

import copy
import os
import signal
import threading
from contextlib import contextmanager
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
from fwrnn.learning.signals import STOPPING

CPU = torch.device("cpu")


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
        self._lock = self._context.Lock()
        self._stop = self._context.Event()
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
        """Wait for the next update of any worker."""
        if not self._workers:
            self._start()
        self.set_learning_rate()
        while self._workers:
            ready = cast(list[Connection], wait(list(self._workers)))  # no sockets among them
            for connection in ready:
                try:
                    news = connection.recv()
                except (EOFError, OSError):
                    self._dismiss(connection)
                    continue
                if isinstance(news, str):
                    raise RunFailed(f"a worker failed: {news}")
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
    def _locked(self):
        """Nobody changes the weights meanwhile. A worker that died may have died with the lock."""
        while not self._lock.acquire(timeout=1):
            if any(worker.exitcode for worker in self._workers.values()):
                raise RunFailed("a worker died while it changed the weights; resume the run")
        try:
            yield
        finally:
            self._lock.release()

    def validate(self) -> dict[str, float]:
        with self._locked():
            self._snapshot.load_state_dict(self.model.state_dict())
        return super().validate()

    def content(self) -> dict:
        with self._locked():
            return copy.deepcopy(super().content())

    def _start(self) -> None:
        """Share what is to be shared and start the workers.

        They inherit that signals to stop are ignored, which reach all processes of a terminal or a
        batch job: this one tells them to stop.
        """
        self.model.share_memory()
        statistics = [self._statistics(parameter) for parameter in self.model.parameters()]
        # Kept here: what a worker has not opened yet must not be collected.
        self._tickets = self._context.Value("q", self.progress.update)
        common = self.model, statistics, self.task, self.config
        shared = *common, self._tickets, self._lock, self._stop
        main_thread = threading.current_thread() is threading.main_thread()
        signals = STOPPING if main_thread else ()
        before = {number: signal.signal(number, signal.SIG_IGN) for number in signals}
        try:
            for number in range(self.config.workers):
                ours, theirs = self._context.Pipe(duplex=False)
                seed = self.seed + 1_000_003 * (number + 1) + self.progress.update
                worker = self._context.Process(
                    target=work, args=(*shared, seed, theirs), daemon=True
                )
                worker.start()
                theirs.close()
                self._workers[ours] = worker
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _statistics(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """Adam's state of a parameter, in shared memory."""
        state = self.optimizer.state_of(parameter)
        for tensor in state.values():
            tensor.share_memory_()
        return state

    def close(self) -> None:
        """Have the workers stop after the update they are at; those that do not are killed."""
        self._stop.set()
        for connection in self._workers:
            connection.close()
        for worker in self._workers.values():
            worker.join(timeout=5)
            if worker.is_alive():
                worker.kill()
                worker.join()
        self._workers = {}


def work(
    model: nn.Module,
    statistics: list[dict[str, Tensor]],
    task: GameTask,
    config: A3CConfig,
    tickets,
    lock,
    stop,
    seed: int,
    connection: Connection,
) -> None:
    """A worker: updates until there are no more, ``stop`` is set, or nobody listens any more."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        torch.set_num_threads(1)
        torch.manual_seed(seed)
        optimizer = Adam(model.parameters(), config.learning_rate)
        for parameter, state in zip(model.parameters(), statistics, strict=True):
            optimizer.state[parameter] = state
        local, games = copy.deepcopy(model), task.games(config.games)
        while not stop.is_set():
            with tickets.get_lock():
                update, tickets.value = tickets.value, tickets.value + 1
            if update >= config.max_updates:
                break
            news = one_update(model, local, optimizer, games, task, config, update, lock)
            tell(connection, news)
    except Exception as error:
        tell(connection, f"{type(error).__name__}: {error}")


def end_with_parent() -> None:
    """Wait for the parent's end, however it comes, and end too, whatever is being waited for."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # as this is a worker
    parent.join()
    os._exit(0)


def tell(connection: Connection, news: dict | str) -> None:
    try:
        connection.send(news)
    except OSError:
        os._exit(0)  # the one who listened has gone


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
