"""A Flower `Grid` on Ray: persistent actors that run the ClientApp, one copy of the model per round.

Actors live as long as the grid, so that data, model and ledgers are loaded once per process. The messages of a
round share one `ArrayRecord`: it is put into Ray's object store once and fetched once by each actor. An actor that
dies answers for its client with the code NODE_LOST and is replaced.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
import time
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from numpy.typing import NDArray

from fedpriv.errors import InputError
from fedpriv.messages import Refusal
from fedpriv.provenance import PACKAGES, source_root
from simulations.inline_grid import SimulatedGrid, node_contexts
from simulations.resources import Workers, cores, plan

_SINGLE_THREAD = {
    name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
}
_QUIET = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
_INLINE_BYTES = 8 << 20
_PASSED_ON = ("FEDPRIV_DATA_DIR", "FEDPRIV_CACHE_DIR")


# The array records of a message on their way through the object store: name of the record -> (key, dtype, shape, kind,
# bytes as uint8 [n]) of each array. Ray copies NumPy buffers once and maps them at the other end; bytes inside a
# pickled Message it copies four times.
Packed = dict[str, list[tuple[str, str, tuple[int, ...], str, NDArray[np.uint8]]]]
Records = dict[str, ArrayRecord]
Shared = tuple[int, list[Any]]  # serial number, [reference]


def split(message: Message) -> tuple[Message, Records]:
    """The message without its array records (itself when it has none), and these by name."""
    content = message.content if message.has_content() else {}
    records = {name: record for name, record in content.items() if isinstance(record, ArrayRecord)}
    if not records:
        return message, {}
    rest = RecordDict({name: record for name, record in content.items() if name not in records})
    return Message(content=rest, metadata=message.metadata), records  # pyright: ignore[reportCallIssue]


def pack(records: Records) -> Packed:
    """For the object store; no copy."""
    return {
        name: [(k, a.dtype, tuple(a.shape), a.stype, np.frombuffer(a.data, dtype=np.uint8)) for k, a in record.items()]
        for name, record in records.items()
    }


def unpack(packed: Packed) -> Records:
    """What `pack` was given; one copy."""
    return {
        name: ArrayRecord({k: Array(dtype, shape, kind, data.tobytes()) for k, dtype, shape, kind, data in arrays})
        for name, arrays in packed.items()
    }


class _Worker:
    """The body of an actor; Ray makes it remote."""

    def __init__(self, app: str, count: int, run_config: Mapping[str, Any]) -> None:
        import importlib

        import torch

        torch.set_num_threads(1)
        module, _, name = app.partition(":")
        self._app = getattr(importlib.import_module(module), name)
        self._contexts: dict[int, Context] = node_contexts(count, run_config)
        self._cached: tuple[int, Records] | None = None

    def ready(self) -> int:
        """The process id, once everything is imported."""
        return os.getpid()

    def handle(self, message: Message, shared: Shared | None) -> tuple[Message, Packed]:
        """Runs the ClientApp; `shared` refers to the array records that belong into the message."""
        if shared is not None:
            import ray

            serial, (reference,) = shared
            if self._cached is None or self._cached[0] != serial:
                self._cached = (serial, unpack(cast(Packed, ray.get(reference))))
            for name, record in self._cached[1].items():
                message.content[name] = record
        light, records = split(self._app(message, self._contexts[message.metadata.dst_node_id]))
        return light, pack(records)


class RayGrid(SimulatedGrid):
    """Sends messages to idle actors; use it as a context manager.

    Args:
        count: clients.
        run_config: the flat scenario.
        workers: actors at a time; 0: one per core (or GPU share).
        num_cpus: cores per actor, for Ray's bookkeeping.
        num_gpus: GPUs per actor, may be a fraction.
        address: an existing cluster (`auto`, `host:port`, `ray://...`); empty: a local one, shut down at the end.
        app: where the ClientApp is, `module:name`.

    Raises:
        InputError: Ray is not installed, the cluster cannot be reached, or no actor fits on it.
    """

    def __init__(
        self,
        count: int,
        run_config: Mapping[str, Any],
        *,
        workers: int = 0,
        num_cpus: float = 1.0,
        num_gpus: float = 0.0,
        address: str = "",
        app: str = "clients.client_app:app",
    ) -> None:
        if importlib.util.find_spec("ray") is None:
            raise InputError(
                "the engine `ray` needs Ray, which is not installed here (pip install 'fedpriv[ray]'); use "
                "--engine inline, or install it. Nothing was started."
            )
        super().__init__(count)
        self._run_config = dict(run_config)
        self._app = app
        self._stop_ray = connect(address, workers, num_gpus)
        try:
            self.workers = self._plan(workers, num_cpus, num_gpus)
            self._actors = [self._new_actor() for _ in range(self.workers.count)]
            self._wait_until_ready()
        except BaseException:
            self._actors = getattr(self, "_actors", [])
            self.close()
            raise
        self._load = {actor: 0 for actor in self._actors}  # messages that each actor has
        self._queue: deque[tuple[Message, Message, Shared | None]] = deque()
        self._running: dict[Any, tuple[Any, Message]] = {}  # reference of the reply -> actor, message as it came
        self._replies: dict[str, Message] = {}
        self._wanted: set[str] = set()
        self._shared: tuple[Records, int, Any] | None = None  # the newest model, its serial, its reference
        self._serial = 0

    # ---- Grid ---------------------------------------------------------------------------------

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queues the messages; each goes to the next idle actor."""
        ids: list[str] = []
        for message in messages:
            ids.append(self._stamp(message))
            light, shared = self._without_model(message)
            self._queue.append((message, light, shared))
        self._wanted.update(ids)
        self._dispatch()
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies to `message_ids` that are there, once; does not wait."""
        self._collect(0.0)
        return [self._replies.pop(i) for i in message_ids if i in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Sends all and waits for the replies; after `timeout` seconds returns those that came.

        What is still queued then is dropped; a late reply is thrown away when it comes.
        """
        ids = list(self.push_messages(messages))
        end = time.monotonic() + timeout if timeout is not None else float("inf")
        while any(i not in self._replies for i in ids):
            left = end - time.monotonic()
            if left <= 0:
                break
            self._collect(min(left, 3600.0))
        self._queue = deque(item for item in self._queue if item[0].metadata.message_id not in ids)
        self._wanted.difference_update(ids)
        return [self._replies.pop(i) for i in ids if i in self._replies]

    # ---- actors -------------------------------------------------------------------------------

    def __enter__(self) -> RayGrid:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the actors, and Ray if this grid started it."""
        import ray

        for actor in self._actors:
            ray.kill(actor)
        self._actors = []
        if self._stop_ray:
            ray.shutdown()

    def pids(self) -> list[int]:
        """Process ids of the actors (for tests and for looking)."""
        import ray

        return cast("list[int]", ray.get([actor.ready.remote() for actor in self._actors]))

    def _plan(self, workers: int, num_cpus: float, num_gpus: float) -> Workers:
        import ray

        nodes = [node["Resources"] for node in ray.nodes() if node.get("Alive", True) and node.get("Resources")]
        return plan(workers, self.count, nodes, num_cpus=num_cpus, num_gpus=num_gpus)

    def _new_actor(self) -> Any:
        import ray

        kind = ray.remote(_Worker).options(num_cpus=self.workers.num_cpus, num_gpus=self.workers.num_gpus)
        return kind.remote(self._app, self.count, self._run_config)

    def _wait_until_ready(self) -> None:
        import ray
        from ray.exceptions import RayError

        try:
            ray.get([actor.ready.remote() for actor in self._actors], timeout=300)
        except RayError as error:
            raise InputError(
                f"the client processes did not start on Ray ({type(error).__name__}); is fedpriv installed on every "
                "machine of the cluster? Nothing was trained."
            ) from None

    def _without_model(self, message: Message) -> tuple[Message, Shared | None]:
        """The message without its model, and where the model is: pickling it per client would copy it K times."""
        import ray

        light, records = split(message)
        if not records:
            return message, None
        if self._shared is None or not _same(self._shared[0], records):
            self._serial += 1
            self._shared = (records, self._serial, ray.put(pack(records)))
        # Inside a list a reference is passed as it is; the actor fetches it once per model, not once per message.
        return light, (self._shared[1], [self._shared[2]])

    def _dispatch(self) -> None:
        while self._queue:
            actor = min(self._load, key=lambda a: self._load[a])
            # A second message waits at an actor while many are left: its way there costs no time then. Towards the
            # end each goes to whoever is free.
            if self._load[actor] >= (2 if len(self._queue) > len(self._load) else 1):
                return
            message, light, shared = self._queue.popleft()
            self._load[actor] += 1
            self._running[actor.handle.remote(light, shared)] = (actor, message)

    def _collect(self, timeout: float) -> None:
        """Takes what has come within `timeout` seconds, at least one reply if any, and sends the next messages."""
        import ray

        if not self._running:
            return
        ready, _ = ray.wait(list(self._running), num_returns=1, timeout=timeout)
        for reference in ready:
            actor, message = self._running.pop(reference)
            reply, alive = self._reply(reference, message)
            if alive:
                self._load[actor] -= 1
            elif actor in self._load:  # the second message of a dead actor finds it replaced
                del self._load[actor]
                self._actors.remove(actor)
                self._actors.append(self._new_actor())
                self._load[self._actors[-1]] = 0
            if message.metadata.message_id in self._wanted:
                self._replies[message.metadata.message_id] = reply
        self._dispatch()

    def _reply(self, reference: Any, message: Message) -> tuple[Message, bool]:
        import ray
        from ray.exceptions import RayActorError, RayError, RayTaskError

        try:
            reply, packed = cast("tuple[Message, Packed]", ray.get(reference))
            for name, record in unpack(packed).items():
                reply.content[name] = record
            return reply, True
        except RayTaskError:
            # Our ClientApp answers everything with a code; another app's exception text is not passed on either.
            return Refusal.INTERNAL.to_message(message), True
        except RayActorError:
            return Refusal.NODE_LOST.to_message(message), False
        except RayError:
            return Refusal.NODE_LOST.to_message(message), True


def _same(a: Records, b: Records) -> bool:
    """Whether both are the very same objects: then they have been put already."""
    return a.keys() == b.keys() and all(a[name] is b[name] for name in a)


def _check_reachable(address: str) -> None:
    """Ray itself tries for minutes, and ends the process when it gives up."""
    host, separator, port = address.rpartition("://")[2].rpartition(":")
    if separator and port.isdigit():
        socket.create_connection((host, int(port)), timeout=5.0).close()


def connect(address: str, workers: int, num_gpus: float) -> bool:
    """Starts or joins Ray; True when this call started or joined it and should leave it at the end.

    Raises:
        InputError: the cluster cannot be reached.
    """
    import ray

    if ray.is_initialized():
        return False
    env = {"FEDPRIV_SIMULATION": "1", **_SINGLE_THREAD, **_QUIET}
    env |= {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
    try:
        if address:
            _check_reachable(address)
            # The packages travel with the job, so that the cluster runs this code and not another installation.
            modules = [str(source_root() / package) for package in PACKAGES]
            ray.init(address=address, runtime_env={"env_vars": env, "py_modules": modules}, **common)
        else:
            env["PYTHONPATH"] = os.pathsep.join([str(source_root()), *(p for p in sys.path if p and Path(p).exists())])
            # Ray counts cores for placing actors; asking for more workers than cores is the user's decision.
            ray.init(
                num_cpus=max(workers, cores()),
                include_dashboard=False,
                runtime_env={"env_vars": env},
                # Replies up to this size travel with the answer; through the object store they take twice as long.
                _system_config={"max_direct_call_object_size": _INLINE_BYTES},
                **({"num_gpus": None} if num_gpus else {"num_gpus": 0}),
                **common,
            )
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        where = f"the Ray cluster run.ray_address={address!r}" if address else "a local Ray"
        raise InputError(f"{where} cannot be used ({type(error).__name__}: {error}); nothing was started.") from None
    return True
