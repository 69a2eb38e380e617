"""Jobs on Ray: refusals, order and lost workers with a stand-in for its API; what only Ray itself can show is in tests/test_ray.py."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from deftly.sim import cluster
from deftly.sim.cluster import Ray, RayWorker
from deftly.sim.processes import JobFailed, WorkerDied
from deftly.types import UsageError
from guards import guards


class RayError(Exception):
    pass


class RayTaskError(RayError):
    pass


class ActorDiedError(RayError):
    pass


class GetTimeoutError(RayError, TimeoutError):
    pass


class FakeRay(ModuleType):
    """What `sim/cluster.py` uses of ray. An actor does a job when it is given; the newest answer is ready first."""

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError, GetTimeoutError=GetTimeoutError)

    def __init__(self) -> None:
        super().__init__("ray")
        self.__spec__ = importlib.machinery.ModuleSpec("ray", None)
        self.node_ip_address = "127.0.0.1"
        self.started: list[tuple[dict[str, Any], dict[str, str]]] = []
        self.calls: list[str] = []
        self.most = 0
        self.slow_start = False
        self.start_error: Exception | None = None

    def is_initialized(self) -> bool:
        return False

    def init(self, **options: Any) -> Any:
        self.started.append((options, {name: value for name, value in os.environ.items() if name.startswith("RAY_")}))
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        return SimpleNamespace(address_info={"node_ip_address": self.node_ip_address})

    def shutdown(self) -> None:
        self.calls.append("shutdown")

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 1.0}

    def remote(self, **options: Any) -> Callable[[type], Any]:
        assert options == {"num_cpus": 1, "max_restarts": 0, "max_task_retries": 0}
        return lambda kind: SimpleNamespace(remote=lambda *arguments: FakeActor(kind(*arguments)))

    def get(self, reference: Any, timeout: float | None = None) -> Any:
        if isinstance(reference, list):
            if self.slow_start:
                raise GetTimeoutError("not yet")
            if self.start_error is not None:
                raise self.start_error
            return [self.get(item) for item in reference]
        if isinstance(reference.answer, Exception):
            raise reference.answer
        return reference.answer

    def wait(self, references: list[Any], *, num_returns: int, timeout: float | None) -> tuple[list[Any], list[Any]]:
        self.most = max(self.most, len(references))
        return references[-1:], references[:-1]

    def kill(self, actor: Any, *, no_restart: bool) -> None:
        assert no_restart
        self.calls.append("kill")


class Reference:
    def __init__(self, answer: Any) -> None:
        self.answer = answer


class FakeActor:
    def __init__(self, worker: RayWorker) -> None:
        self.look = SimpleNamespace(remote=lambda *arguments: Reference(worker.look(*arguments)))
        self.work = SimpleNamespace(remote=lambda job: Reference(lost(job) or worker.work(job)))


def lost(job: Any) -> Exception | None:
    if job == "unpicklable":
        raise TypeError("cannot pickle it")
    return {300: ActorDiedError("its process\nended"), 400: RayTaskError("the result\nTypeError: cannot pickle")}.get(job)


def work(job: int) -> int:
    if job == 100:
        raise UsageError("too much")
    if job == 200:
        raise KeyError("lost")
    return job * job


def worker() -> Callable[[int], int]:
    return work


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setattr(cluster, "_is_settled", True)
    return fake


def numbered(job: Any) -> str:
    return f"episode {job}"


def test_results_come_in_the_order_of_the_jobs(ray: FakeRay) -> None:
    with Ray() as executor:
        assert list(executor.run(worker, range(20), workers=3)) == [i * i for i in range(20)]
        assert ray.calls == ["kill"] * 3, "actors end with their jobs"
        assert list(executor.run(worker, range(3), workers=2)) == [0, 1, 4]
        assert len(ray.started) == 1, "Ray stays up between two calls"
    assert ray.calls[-1] == "shutdown"
    assert ray.most == 3, "one job at a time for each worker"


def test_it_starts_for_jobs_only_and_for_this_machine_only(ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    handler = signal.getsignal(signal.SIGTERM)
    with Ray() as executor:
        assert list(executor.run(worker, [], workers=2)) == []
        assert not ray.started
        assert list(executor.run(worker, [3], workers=2)) == [9]
        assert signal.getsignal(signal.SIGTERM) is handler
    (options, environment) = ray.started[0]
    assert (options["address"], options["num_cpus"], options["include_dashboard"]) == ("local", 2, False)
    assert environment["RAY_USAGE_STATS_ENABLED"] == "0"
    assert environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0", "this is what makes it listen on loopback"
    assert environment["RAY_worker_niceness"] == "0", "as fast as local workers: Ray would let everything else go first"
    assert (environment["RAY_AUTH_MODE"], len(environment["RAY_AUTH_TOKEN"])) == ("token", 64)
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "1"
    assert "RAY_AUTH_TOKEN" not in os.environ


@guards("cluster.loopback")
def test_an_instance_that_others_could_reach_is_ended(ray: FakeRay) -> None:
    ray.node_ip_address = "192.0.2.7"
    with pytest.raises(UsageError, match=r"^Ray does not start: it listens on 192\.0\.2\.7, beyond this machine"), Ray() as executor:
        list(executor.run(worker, [1], workers=1))
    assert ray.calls == ["shutdown"]


@guards("cluster.imported_early")
def test_a_ray_that_was_imported_before_is_not_started(ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has read from the environment where to listen, and would not read it again; a user's own instance is another matter."""
    monkeypatch.setattr(cluster, "_is_settled", False)
    with pytest.raises(UsageError, match=r"ray was imported before .* or call ray\.init yourself$"):
        list(Ray().run(worker, [1], workers=1))
    assert not ray.started
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    with Ray() as executor:
        assert list(executor.run(worker, [3], workers=1)) == [9]
    assert ray.calls == ["kill"], "it is not ours to shut down"


def test_a_lost_worker_is_an_error_that_names_its_job(ray: FakeRay) -> None:
    with Ray() as executor:
        results = executor.run(worker, [1, 2, 300, 4, 5, 6, 7, 8], workers=2, name=numbered)
        assert [next(results), next(results)] == [1, 4]
        with pytest.raises(WorkerDied, match=r"^a Ray worker died while it did episode 300: it was killed") as caught:
            next(results)
        assert isinstance(caught.value.__cause__, ActorDiedError)
        assert ray.calls == ["kill", "kill"]


def test_errors_name_the_job(ray: FakeRay) -> None:
    with Ray() as executor:
        results = executor.run(worker, [1, 100], workers=2, name=numbered)
        assert next(results) == 1
        with pytest.raises(UsageError, match=r"^episode 100: too much$") as caught:
            next(results)
        assert "in work" in str(caught.value.__cause__)
        for job, message in ((200, "KeyError: 'lost'"), ("unpicklable", "TypeError: cannot pickle it"), (400, "RayTaskError: the result")):
            with pytest.raises(JobFailed, match=f"^episode {job}: {message}"):
                list(executor.run(worker, [job], workers=1, name=numbered))


def test_a_generator_may_be_left(ray: FakeRay) -> None:
    executor = Ray()
    results = executor.run(worker, range(1000), workers=2)
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    assert ray.calls == ["kill", "kill"]


@guards("cluster.missing")
def test_a_missing_ray_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"^ray is not installed: pip install 'deftly\[ray\]'"):
        Ray()


@guards("cluster.address")
@pytest.mark.parametrize("address", ["", "10.0.0.5", "ray://10.0.0.5:10001", "host:port", "a b:1"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match=r"is no address of a Ray cluster; give HOST:PORT"):
        Ray(address)


@guards("cluster.workers", "cluster.workers_unknown")
def test_the_number_of_workers_must_be_said(ray: FakeRay) -> None:
    assert Ray().default_workers() >= 1
    with pytest.raises(UsageError, match="--workers N"):
        Ray("auto").default_workers()
    with pytest.raises(UsageError, match="1 worker or more, got 0: give --workers N"):
        Ray().run(worker, [1], workers=0)


def test_where_nothing_answers_is_found_out_in_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setattr(cluster, "CONNECT_S", 1.0)
    start = time.monotonic()
    with pytest.raises(UsageError, match=r"^no Ray cluster answers at 127\.0\.0\.1:9 within 1 s; start it by"):
        list(Ray("127.0.0.1:9").run(worker, [1], workers=1))
    assert time.monotonic() - start < 30


def test_what_a_refused_connection_says_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_TRY", "raise ConnectionError('nobody\\nis there')")
    with pytest.raises(UsageError, match=r"^no Ray cluster at auto: is there; start it by"):
        list(Ray("auto").run(worker, [1], workers=1))


def test_a_cluster_is_joined_as_it_is(ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_TRY", "")
    with Ray("auto") as executor:
        assert list(executor.run(worker, [2], workers=1)) == [4]
    assert ray.started[0][0] == {"address": "auto", "log_to_driver": False, "logging_level": "error"}


def test_too_few_cpus_are_an_error_and_no_hang(ray: FakeRay) -> None:
    ray.slow_start = True
    with pytest.raises(UsageError, match=r"^2 Ray workers did not stand after .* it has 1 CPUs, or they are busy; lower --workers"):
        list(Ray().run(worker, [1], workers=2))
    assert ray.calls == ["kill", "kill"]


def test_a_worker_that_does_not_start_says_why(ray: FakeRay) -> None:
    ray.start_error = ActorDiedError("The actor died\nModuleNotFoundError: No module named 'deftly'\n")
    with pytest.raises(UsageError, match=r"^a Ray worker does not start: ModuleNotFoundError: No .* 'deftly'; is deftly installed"):
        list(Ray().run(worker, [1], workers=2))
    assert ray.calls == ["kill", "kill"]


@guards("cluster.versions")
def test_a_worker_with_other_versions_is_refused(ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = cluster._versions()
    answers = iter([{**ours, "mujoco": "3.0.0"}, ours])
    monkeypatch.setattr(cluster, "_versions", lambda: next(answers))
    with pytest.raises(UsageError, match=rf"has mujoco 3\.0\.0, here it is {ours['mujoco']}; install the same on both"):
        list(Ray().run(worker, [1], workers=1))


@guards("cluster.folder")
@pytest.mark.parametrize(("fault", "words"), [("blind", "it does not see"), ("mute", "what it writes is not seen here")])
def test_a_folder_that_is_not_shared_is_refused_before_any_job(
    ray: FakeRay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, words: str
) -> None:
    """The worker stands on another machine: its disk has a folder of the same name."""
    monkeypatch.setattr(cluster, "SEEN_S", 0.2)
    other = tmp_path / "other"
    other.mkdir()
    answer = cluster._answer
    if fault == "blind":
        monkeypatch.setattr(cluster, "_answer", lambda probe, number: answer(other / probe.name, number))
    else:
        monkeypatch.setattr(cluster, "_answer", lambda probe, number: None)
    done: list[int] = []
    with pytest.raises(UsageError, match=rf"^{tmp_path}: the worker on .* does not share this folder \({words}") as caught:
        list(Ray().run(lambda: done.append, [1], workers=1, folder=tmp_path))
    assert "\n" not in str(caught.value)
    assert not done
    assert list(tmp_path.iterdir()) == [other], "nothing is left behind"


def test_a_shared_folder_is_left_as_it_was(ray: FakeRay, tmp_path: Path) -> None:
    assert list(Ray().run(worker, [1, 2], workers=2, folder=tmp_path)) == [1, 4]
    assert list(tmp_path.iterdir()) == []
