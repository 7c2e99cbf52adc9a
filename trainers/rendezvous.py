"""How training workers meet: at a store in the first one's process, which listens on its node's address and on no other.

Torch's own store, which Ray Train starts, listens on all of the machine's interfaces.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from datetime import timedelta
from typing import Any

import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _set_torch_distributed_env_vars, _TorchBackend


class NodeAddress(TorchConfig):
    """Ray Train's setting of torch's process group, with `Rendezvous` in the place of its own."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """What starts the process group."""
        return Rendezvous


class Rendezvous(_TorchBackend):
    """Starts the process group of a worker group, with the backend that Ray Train has chosen: NCCL on GPUs, else gloo."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Open the store on the first worker's node, and let all workers join."""
        host, port, descriptor = worker_group.execute_single(0, listen)
        worker_group.execute(_set_torch_distributed_env_vars)
        world = len(worker_group)
        waiting = [
            worker_group.execute_single_async(
                rank,
                join,
                backend_config.backend,
                rank,
                world,
                host,
                port,
                descriptor if rank == 0 else None,
                backend_config.timeout_s,
            )
            for rank in range(world)
        ]
        ray.get(waiting)


def listen() -> tuple[str, int, int]:
    """Open a socket on the address by which Ray knows this node.

    Returns:
        The address, the port, and the socket's file descriptor, which is this process's to close.
    """
    host = ray.util.get_node_ip_address()
    opened = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=1024)
    return host, int(opened.getsockname()[1]), opened.detach()


def join(backend: str, rank: int, world: int, host: str, port: int, descriptor: int | None, seconds: float) -> None:
    """Become a rank of the process group.

    Args:
        backend: torch's name of it.
        rank, world: this rank, and how many there are.
        host, port: where the store is.
        descriptor: of the listening socket, on the rank that keeps the store.
        seconds: how long an operation of the group may take.
    """
    import torch.distributed as dist

    os.environ |= {"MASTER_ADDR": host, "MASTER_PORT": str(port)}
    if ipaddress.ip_address(host).is_loopback:  # gloo would take the interface that the machine's name leads to
        os.environ.setdefault("GLOO_SOCKET_IFNAME", next(name for _, name in socket.if_nameindex() if name.startswith("lo")))
    timeout = timedelta(seconds=seconds)
    mine = {"is_master": True, "master_listen_fd": descriptor} if descriptor is not None else {}
    store = dist.TCPStore(host, port, world, wait_for_workers=False, timeout=timeout, **mine)  # type: ignore[arg-type]
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timeout)
