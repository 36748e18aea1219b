"""Where the jobs of ``prepare`` run: any concurrent.futures.Executor, or this process."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager

import pyarrow as pa

from medbert.schema import InputError


@contextmanager
def serial() -> Iterator[Executor | None]:
    """One job after the other, here."""
    yield None


@contextmanager
def processes(workers: int | None) -> Iterator[Executor | None]:
    """``workers`` processes of this machine; None: one for each core."""
    context = multiprocessing.get_context("spawn")
    workers = workers or os.cpu_count()
    with ProcessPoolExecutor(workers, context, initializer=pa.set_cpu_count, initargs=(1,)) as pool:
        yield pool


@contextmanager
def dask(address: str | None, workers: int, timeout_s: float = 30) -> Iterator[Executor | None]:
    """A Dask cluster at ``address`` (``tcp://...``); None: one of ``workers`` processes here.

    The workers need medbert installed and the same file system under the same paths.
    """
    try:
        from distributed import Client, LocalCluster
    except ImportError:
        raise InputError("executor=dask needs Dask: pip install 'medbert[dask]'") from None
    if address:
        try:
            client = Client(address, timeout=timeout_s)
        except (OSError, ValueError) as error:
            raise InputError(
                f"executor.address={address}: no Dask scheduler answers ({type(error).__name__})"
            ) from None
        with client:
            yield client.get_executor()
        return
    cluster = LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None)
    with cluster, Client(cluster) as client:
        yield client.get_executor()
