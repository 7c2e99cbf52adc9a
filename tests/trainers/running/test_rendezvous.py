"""A process group's store listens on the address that it was given, and never on all."""

from __future__ import annotations

import multiprocessing
import socket
from typing import Any

import psutil
import torch
import torch.distributed as dist

from trainers.running.rendezvous import join, listen


def addresses() -> list[str]:
    """A loopback address of this machine, and those of its own that are no loopback ones."""
    kinds = (socket.AF_INET, socket.AF_INET6)
    found = {at.address for net in psutil.net_if_addrs().values() for at in net if at.family in kinds and "%" not in at.address}
    return ["127.0.0.1", *sorted(found - {"127.0.0.1", "::1"})]


def work(rank: int, hosts: list[str], sums: Any, places: Any) -> None:
    for host in hosts:
        descriptor = None
        if rank == 0:
            port, descriptor = listen(host)
            places.put(port)
        join("gloo", 60, rank, 2, host, port if rank == 0 else places.get(), descriptor)
        number = torch.tensor([rank + 1])
        dist.all_reduce(number)
        sockets = psutil.Process().net_connections("inet")
        sums.put((host, rank, int(number), {at.laddr.ip for at in sockets if at.status == psutil.CONN_LISTEN}))
        dist.barrier()
        dist.destroy_process_group()


def test_the_store_of_two_processes_listens_on_the_address_that_it_was_given_and_never_on_all() -> None:
    context, hosts = multiprocessing.get_context("spawn"), addresses()
    sums, places = context.Queue(), context.Queue()
    processes = [context.Process(target=work, args=(rank, hosts, sums, places)) for rank in range(2)]
    for process in processes:
        process.start()
    found = [sums.get(timeout=240) for _ in range(2 * len(hosts))]
    for process in processes:
        process.join()
    assert {(host, rank, number) for host, rank, number, _ in found} == {(host, rank, 3) for host in hosts for rank in range(2)}
    for host, rank, _, listening in found:  # gloo adds the address that the machine's name leads to
        assert host in listening or rank > 0
        assert not listening & {"0.0.0.0", "::"}
