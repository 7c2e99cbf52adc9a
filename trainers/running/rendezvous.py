"""How training workers meet: at a store that listens on the loopback address, or on a node's own where they are on several.

Torch's own store, which Ray Train starts, listens on all of the machine's interfaces.
"""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from typing import Any

import ray
import torch.distributed as dist
from ray.train.torch import TorchConfig
from ray.train.torch.config import _set_torch_distributed_env_vars, _TorchBackend

_LOOPBACK = "127.0.0.1"


class NodeAddress(TorchConfig):
    """Ray Train's setting of torch's process group, with `Rendezvous` in the place of its own."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """What starts the process group."""
        return Rendezvous


class Rendezvous(_TorchBackend):
    """Starts the process group of a worker group: NCCL on GPUs, else gloo, as Ray Train has it."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Open the store in the first worker, and let all workers join."""
        nodes = worker_group.execute(ray.util.get_node_ip_address)
        host = nodes[0] if len(set(nodes)) > 1 else _LOOPBACK
        port, descriptor = worker_group.execute_single(0, listen, host)
        worker_group.execute(_set_torch_distributed_env_vars)
        backend = "nccl" if worker_group.get_resources_per_worker().get("GPU", 0) > 0 else "gloo"
        place, seconds = (len(nodes), host, port), backend_config.timeout_s
        others = [worker_group.execute_single_async(rank, join, backend, seconds, rank, *place) for rank in range(1, len(nodes))]
        ray.get([worker_group.execute_single_async(0, join, backend, seconds, 0, *place, descriptor), *others])


def listen(host: str) -> tuple[int, int]:
    """Open a socket on an address of this machine.

    Returns:
        The port, and the socket's file descriptor, which is this process's to close.
    """
    opened = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=1024)
    return int(opened.getsockname()[1]), opened.detach()


def join(backend: str, seconds: float, rank: int, world: int, host: str, port: int, descriptor: int | None = None) -> None:
    """Become a rank of the process group.

    Args:
        backend: torch's name of it.
        seconds: how long an operation of the group may take.
        rank: of this process.
        world: how many ranks there are.
        host: the address of the store.
        port: and its port.
        descriptor: of the listening socket, on the rank that keeps the store.
    """
    os.environ |= {"MASTER_ADDR": host, "MASTER_PORT": str(port)}
    if host == _LOOPBACK:  # gloo would take the interface that the machine's name leads to
        os.environ["GLOO_SOCKET_IFNAME"] = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    timeout = timedelta(seconds=seconds)
    mine: Any = {} if descriptor is None else {"is_master": True, "master_listen_fd": descriptor}
    store = dist.TCPStore(host, port, world, wait_for_workers=False, timeout=timeout, **mine)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timeout)
