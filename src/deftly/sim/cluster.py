"""The same jobs on Ray: an instance on this machine, started for them and ended with them, or a cluster that runs already.

A worker is an actor with one CPU that is given one job at a time, so that it is known which job an actor died of. What starts here listens
on the loopback interface alone, with a token, without a dashboard and without usage statistics.
"""

from __future__ import annotations

import collections
import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from deftly.sim.processes import (
    IN_FLIGHT,
    Executor,
    Failure,
    Job,
    RemoteTraceback,
    Result,
    Worker,
    WorkerDied,
    failure_of,
    named,
    usable_cores,
)
from deftly.types import UsageError

INSTALL = "pip install 'deftly[ray]', in a checkout pip install -e '.[ray]'"
COMPARED = ("deftly", "torch", "numpy", "mujoco", "av", "pyarrow")  # other versions may give other bytes
CONNECT_S = 60.0  # to reach a cluster, the import of ray on a busy machine included
START_S = 300.0  # for all workers to stand: the first import on a cold file system takes long
SEEN_S = 10.0  # for a file to appear on another machine: a network file system may lag
OBJECT_STORE_BYTES = 80 * 2**20  # Ray's least is 75 MiB; jobs and results are small
_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # "0" makes Ray listen on the loopback interface alone, on Linux too; its import reads it
_TOKEN = secrets.token_hex(32)  # of the instances of this process; without one Ray writes a lasting one into the home directory
_is_settled = False  # whether ray was imported with the environment that its instances here need: it reads that once
# Ray waits for minutes on an address where nothing answers, and may then end the process: it is tried out in another one.
_TRY = "import sys, ray; ray.init(address=sys.argv[1], log_to_driver=False, logging_level='error'); ray.shutdown()"


class _Found(NamedTuple):
    """What a worker says of itself: `missing` names the file that it cannot see or write, and why."""

    host: str
    versions: dict[str, str]
    missing: str | None


class RayWorker(Worker):
    """An actor."""

    def look(self, probe: Path | None, number: int) -> _Found:
        """Read the driver's probe file and answer beside it."""
        return _Found(platform.node(), _versions(), None if probe is None else _answer(probe, number))


def _versions() -> dict[str, str]:
    found = {}
    for name in COMPARED:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _answer(probe: Path, number: int) -> str | None:
    if not _appears(probe):
        return "it does not see what was written here"
    try:
        _answer_path(probe, number).write_text(probe.name)
    except OSError as error:
        return f"it cannot write: {error.strerror}"
    return None


def _answer_path(probe: Path, number: int) -> Path:
    return probe.with_name(f"{probe.name}-{number}")


def _appears(path: Path) -> bool:
    until = time.monotonic() + SEEN_S
    while not path.is_file():
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


class Ray(Executor):
    """Actors of Ray.

    Args:
        address: HOST:PORT of a cluster, or `auto` for the one that this machine belongs to; None starts an instance on this machine. An
            instance that the caller has started by `ray.init` is used as it is.

    Raises:
        UsageError: ray is not installed; the address is none.
    """

    def __init__(self, address: str | None = None) -> None:
        if importlib.util.find_spec("ray") is None:  # guard: cluster.missing
            raise UsageError(f"ray is not installed: {INSTALL}")
        if address is not None and address != "auto" and not re.fullmatch(r"[\w.-]+:\d+", address):  # guard: cluster.address
            raise UsageError(f"{address!r} is no address of a Ray cluster; give HOST:PORT, such as 10.0.0.5:6379, or auto")
        self.address = address
        self._ray: Any = None
        self._is_ours = False

    def default_workers(self) -> int:
        if self.address is not None:  # guard: cluster.workers_unknown
            raise UsageError("say how many workers the cluster shall run: --workers N")
        return usable_cores()

    def run(
        self,
        make: Callable[[], Callable[[Job], Result]],
        jobs: Iterable[Job],
        *,
        workers: int,
        name: Callable[[Job], str] = str,
        threads: int = 1,
        folder: Path | None = None,
    ) -> Iterator[Result]:
        """As `Executor.run`, with 1 worker or more. `folder` must be seen by every worker under the same path, which is tried first.

        Raises:
            UsageError: nothing answers at the address; a worker does not start, or has other versions or another `folder`; a job's own.
            JobFailed: a job, or `make`, raised anything else.
            WorkerDied: an actor, or its machine, was lost; the message names the job that it was at.
        """
        if workers < 1:  # guard: cluster.workers
            raise UsageError(f"Ray needs 1 worker or more, got {workers}: give --workers N")
        return self._results(make, jobs, workers, name, threads, folder)

    def close(self) -> None:
        """End the instance that was started here, or leave the cluster."""
        if self._is_ours:
            self._ray.shutdown()
        self._ray, self._is_ours = None, False

    # Starting ---------------------------------------------------------------------------------------------------------------------------

    def _connect(self, workers: int) -> Any:
        if self._ray is not None:
            return self._ray
        values = {"RAY_USAGE_STATS_ENABLED": "0"}
        if self.address is None:
            values |= {_LOOPBACK: "0", "RAY_worker_niceness": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _TOKEN}
        else:
            _try_out(self.address)
        global _is_settled
        is_early = "ray" in sys.modules and not _is_settled
        with _environment(values), _own_sigterm():
            import ray

            if ray.is_initialized():
                self._ray = ray
                return ray
            if is_early and self.address is None:  # guard: cluster.imported_early
                raise UsageError("ray was imported before deftly could keep it on this machine: import it later, or call ray.init yourself")
            _is_settled = _is_settled or self.address is None
            try:
                self._start(ray, workers)
            except (OSError, RuntimeError, ValueError, TimeoutError) as error:
                raise UsageError(f"Ray does not start: {' '.join(str(error).split())}") from error
        self._ray, self._is_ours = ray, True
        return ray

    def _start(self, ray: Any, workers: int) -> None:
        quiet = {"log_to_driver": False, "logging_level": "error"}
        if self.address is not None:
            ray.init(address=self.address, **quiet)
            return
        least = {"num_cpus": workers, "num_gpus": 0, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
        context = ray.init(address="local", **least, **quiet)
        where = context.address_info["node_ip_address"]
        if not where.startswith("127.") and where != "::1":  # guard: cluster.loopback
            ray.shutdown()
            raise RuntimeError(f"it listens on {where}, beyond this machine, although it was told to stay on loopback")

    def _hire(self, ray: Any, make: Callable[[], Any], workers: int, threads: int, folder: Path | None) -> list[Any]:
        """Actors that stand, with our versions, and see `folder`."""
        kind = ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)(RayWorker)
        actors = []
        probe = None if folder is None else folder / f".probe-{secrets.token_hex(8)}"
        try:
            if probe is not None:
                probe.write_text(probe.name)
            actors = [kind.remote(make, threads) for _ in range(workers)]
            try:
                found = ray.get([actor.look.remote(probe, number) for number, actor in enumerate(actors)], timeout=START_S)
            except ray.exceptions.GetTimeoutError:
                cpus = ray.cluster_resources().get("CPU", 0)
                raise UsageError(
                    f"{workers} Ray workers did not stand after {START_S:g} s: it has {cpus:g} CPUs, or they are busy; lower --workers"
                ) from None
            except ray.exceptions.RayError as error:
                raise UsageError(f"a Ray worker does not start: {_last_line(str(error))}; is deftly installed on its machine?") from error
            for number, report in enumerate(found):
                _check(report, probe, number)
        except BaseException:
            _dismiss(ray, actors)
            raise
        finally:
            if probe is not None:
                for left in probe.parent.glob(f"{probe.name}*"):
                    left.unlink(missing_ok=True)
        return actors

    # Working ----------------------------------------------------------------------------------------------------------------------------

    def _results(
        self, make: Callable[[], Any], jobs: Iterable[Any], workers: int, name: Callable[[Any], str], threads: int, folder: Path | None
    ) -> Iterator[Any]:
        remaining = iter(jobs)
        first = next(remaining, _END)
        if first is _END:
            return
        ray = self._connect(workers)
        actors = self._hire(ray, make, workers, threads, folder)
        idle, unstarted = collections.deque(actors), _then(first, remaining)
        running: dict[Any, tuple[int, Any]] = {}  # answers that are waited for -> number of the job, actor
        done: dict[int, Any] = {}
        names: dict[int, str] = {}
        given = started = 0
        try:
            while True:
                failed = any(isinstance(answer, Exception | Failure) for answer in done.values())  # what comes later is of no use
                while idle and not failed and started - given < workers * IN_FLIGHT and (job := next(unstarted, _END)) is not _END:
                    names[started] = name(job)
                    try:
                        reference = idle[0].work.remote(job)
                        running[reference] = started, idle.popleft()
                    except TypeError as error:  # it cannot be pickled
                        done[started], failed = failure_of(error), True
                    started += 1
                if given in done:
                    yield _opened(done.pop(given), names.pop(given))
                    given += 1
                elif running:
                    for reference in ray.wait(list(running), num_returns=1, timeout=None)[0]:
                        number, actor = running.pop(reference)
                        done[number] = _answer_of(ray, reference, names[number])
                        idle.append(actor)
                else:
                    return
        finally:
            _dismiss(ray, actors)


_END: Any = object()


def _then(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest


def _answer_of(ray: Any, reference: Any, job: str) -> Any:
    """A result, a `Failure`, or the exception to raise for a lost actor."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:  # its result could not be pickled
        return failure_of(error)
    except ray.exceptions.RayError as error:
        died = WorkerDied(f"a Ray worker died while it did {job}: it was killed, ran out of memory, or its machine was lost")
        died.__cause__ = error
        return died


def _opened(answer: Any, job: str) -> Any:
    if isinstance(answer, Failure):
        raise named(job, answer) from RemoteTraceback(answer.trace)
    if isinstance(answer, WorkerDied):
        raise answer
    return answer


def _dismiss(ray: Any, actors: Iterable[Any]) -> None:
    for actor in actors:
        with contextlib.suppress(Exception):  # it, or the cluster, may be gone
            ray.kill(actor, no_restart=True)


def _check(found: _Found, probe: Path | None, number: int) -> None:
    """Refuse a worker whose results would not be ours, or would not arrive."""
    ours = _versions()
    if other := [name for name in COMPARED if found.versions.get(name) != ours.get(name)]:  # guard: cluster.versions
        theirs = found.versions.get(other[0], "nothing")
        raise UsageError(f"the worker on {found.host} has {other[0]} {theirs}, here it is {ours.get(other[0])}; install the same on both")
    if probe is None:
        return
    missing = found.missing or (None if _appears(_answer_path(probe, number)) else "what it writes is not seen here")
    if missing is not None:  # guard: cluster.folder
        remedy = "choose one on a file system that all machines mount at the same path"
        raise UsageError(f"{probe.parent}: the worker on {found.host} does not share this folder ({missing}); {remedy}")


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keeps the process's own handler: Ray's exits with a code that says nothing. Its processes go with this one, however it ends."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _try_out(address: str) -> None:
    """Refuse an address where no cluster answers, in a bounded time."""
    remedy = "start it by `ray start --head`, and run this command on a machine that has joined it"
    try:
        result = subprocess.run([sys.executable, "-c", _TRY, address], capture_output=True, text=True, timeout=CONNECT_S, check=False)
    except subprocess.TimeoutExpired:
        raise UsageError(f"no Ray cluster answers at {address} within {CONNECT_S:g} s; {remedy}") from None
    if result.returncode:
        raise UsageError(f"no Ray cluster at {address}: {_last_line(result.stderr)}; {remedy}")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "no reason given"
