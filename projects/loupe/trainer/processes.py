"""Starting the processes of a run: one, several of our own, or those that torchrun started."""

from __future__ import annotations

import atexit
import logging
import os
import pickle
import signal
import sys
import tempfile
import threading
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.utils import comm
from torch import nn
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException
from torch.nn.parallel import DistributedDataParallel

from loupe.child_processes import Failure, follow_parent
from loupe.threads import divided_cores
from loupe.trainer.signals import SIGNALS
from loupe.writing import write_bytes


def launch(main: Callable[[Namespace], Any], arguments: Namespace) -> Any:
    """Runs `main(arguments)` in as many processes as asked for.

    Detectron2's own `launch` is not used, because that of version 0.6 knows CUDA only. Here the
    processes talk through NCCL where there is CUDA, else through gloo. Under torchrun this
    process joins the group that torchrun describes.

    Args:
        main: entry point of each process; importable, since processes are spawned.
        arguments: of Detectron2's `default_argument_parser`; `num_gpus` counts the processes on
            this machine, also where there is no GPU.

    Returns:
        What `main` returns, if it ran in this process; else None.

    Raises:
        ValueError, OSError: as `main` raised it, in this process or first among the others.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        follow_parent()
        with process_group(
            rank=int(os.environ["RANK"]),
            local_rank=int(os.environ["LOCAL_RANK"]),
            world_size=int(os.environ["WORLD_SIZE"]),
            local_size=int(os.environ["LOCAL_WORLD_SIZE"]),
            url="env://",
        ):
            return main(arguments)
    if arguments.num_gpus * arguments.num_machines == 1:
        return main(arguments)
    with tempfile.TemporaryDirectory() as failures:
        _run_processes(main, arguments, Path(failures))
    return None


def _run_processes(main: Callable[[Namespace], Any], arguments: Namespace, failures: Path) -> None:
    with divided_cores(arguments.num_gpus):
        context = mp.start_processes(
            _run_process,
            args=(main, arguments, failures),
            nprocs=arguments.num_gpus,
            start_method="spawn",
            join=False,
        )
    with _passing_on(context.pids()) as received:
        try:
            while not context.join():
                pass
        except (ProcessExitedException, ProcessRaisedException) as error:
            # A run that was told to stop ends with the status of its signal.
            if received and isinstance(error, ProcessExitedException):
                raise SystemExit(128 + received[0]) from None
            for file in sorted(failures.glob("[0-9]*")):
                pickle.loads(file.read_bytes()).raise_again()  # Of a process of ours.
            raise


@contextmanager
def _passing_on(children: list[int]) -> Iterator[list[int]]:
    """Passes signals on to the processes of the run; yields those that came."""
    received: list[int] = []

    def pass_on(number: int, _: FrameType | None) -> None:
        received.append(number)
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(child, number)

    before = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run_process(
    local_rank: int, main: Callable[[Namespace], Any], arguments: Namespace, failures: Path
) -> None:
    follow_parent()
    group = process_group(
        rank=arguments.machine_rank * arguments.num_gpus + local_rank,
        local_rank=local_rank,
        world_size=arguments.num_machines * arguments.num_gpus,
        local_size=arguments.num_gpus,
        url=arguments.dist_url,
    )
    note = failures / str(local_rank)
    # What `main` raises is noted before the group ends, for then those that wait for it fail, too.
    with _noted(note), group, _noted(note):
        main(arguments)
    _end_process()


@contextmanager
def _noted(note: Path) -> Iterator[None]:
    """Ends the process on what is about a file or a setting: the parent tells it in one line."""
    try:
        yield
    except (ValueError, OSError) as error:
        write_bytes(note, pickle.dumps(Failure.of(error)))
        raise SystemExit(2) from None


def _end_process() -> NoReturn:
    """Ends this process with all that Python does at its end, but without native destructors.

    Threads of gloo outlive the group, because a distributed model that took a step holds it. Now
    and then one of them aborts a process whose work is done while its interpreter is taken down.
    """
    # As the interpreter does: other threads end first, and what they registered runs.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


@contextmanager
def process_group(
    *, rank: int, local_rank: int, world_size: int, local_size: int, url: str
) -> Iterator[None]:
    """Joins the group of all processes.

    Raises:
        ValueError: there is CUDA, but fewer devices than processes on this machine; or the others
            cannot be joined.
    """
    has_cuda = torch.cuda.is_available()
    if has_cuda and local_size > torch.cuda.device_count():
        raise ValueError(
            f"{local_size} processes on a machine with {torch.cuda.device_count()} CUDA devices. "
            "Ask for fewer, or hide the devices (CUDA_VISIBLE_DEVICES=) to run on the CPU."
        )
    if has_cuda:
        torch.cuda.set_device(local_rank)
    backend = "nccl" if has_cuda else "gloo"
    logging.getLogger(__name__).info("process %d of %d joins over %s", rank, world_size, backend)
    try:
        dist.init_process_group(backend, init_method=url, world_size=world_size, rank=rank)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"process {rank} of {world_size} cannot meet the others at {url}: "
            f"{str(error).splitlines()[0]}. Check --dist-url"
        ) from error
    try:
        comm.synchronize()
        yield
        # One that leaves early closes its connections, on which another may still depend.
        comm.synchronize()
    finally:
        dist.destroy_process_group()


def check_batch_size(images_per_batch: int) -> None:
    """Checks that a batch can be shared out evenly among the processes.

    Raises:
        ValueError: it cannot.
    """
    processes = comm.get_world_size()
    if images_per_batch < 1 or images_per_batch % processes:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH is {images_per_batch}; it must be a positive multiple of the "
            f"number of processes, {processes}."
        )


def data_parallel(model: nn.Module) -> nn.Module:
    """Lets the processes average the model's gradients; one process needs no wrapper."""
    if comm.get_world_size() == 1:
        return model
    # No `device_ids`: the model moves its inputs itself, and on the CPU there are none.
    # Unused parameters are looked for because a loss may be switched off by the config
    # (the patch path alone leaves the attention pool without gradient).
    return DistributedDataParallel(model, broadcast_buffers=False, find_unused_parameters=True)
