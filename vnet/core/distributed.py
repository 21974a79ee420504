"""One run on several processes, as `torchrun` or SLURM's `srun` starts them; with one process each function is a no-op.

Every process holds the whole model and its share of each batch, and every n-th case of a list. Rank 0 alone reads and
writes what is shared. Importing this module imports neither torch nor Fabric.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from vnet.core.errors import InputError, RunFault

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch import Tensor, nn

    from vnet.core.config import Config

T = TypeVar("T")
M = TypeVar("M", bound="nn.Module")
# Longer than rank 0 takes to read a whole data set; a process that dies is noticed at once.
GROUP_TIMEOUT = timedelta(hours=2)
SECONDS_FOR_PEERS = 3.0  # rank 0 waits at most this long for the others to end
# Keys of the store that the processes share.
ERROR_REPORTED, EXIT_CODE, ENDED = "vnet/error reported", "vnet/exit code", "vnet/ended"


@dataclass(frozen=True)
class RankInfo:
    """Number of this process and count of processes: over all machines, and on this machine (`local`)."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1


def rank_info() -> RankInfo:
    """The rank from the variables of torchrun, else of a SLURM job step, else of a single process."""
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:
        return RankInfo(*(int(env[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")))
    # a batch script and an interactive shell have SLURM_NTASKS too, but are no task
    if "SLURM_STEP_ID" in env and env.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        world = int(env.get("SLURM_NTASKS", 1))
        local = int(env.get("SLURM_NTASKS_PER_NODE", world // int(env.get("SLURM_NNODES", 1))))
        return RankInfo(int(env.get("SLURM_PROCID", 0)), world, int(env.get("SLURM_LOCALID", 0)), local)
    return RankInfo()


def available_cores() -> int:
    """CPU cores for this process: those it may use, divided by the number of processes on this machine."""
    free, here = len(os.sched_getaffinity(0)), rank_info()
    bound = os.environ.get("SLURM_CPUS_PER_TASK") if here.world_size > 1 else None
    return min(free, int(bound)) if bound else max(free // here.local_world_size, 1)


def launch_fabric(precision: str = "32-true", device: str = "auto") -> Fabric:
    """Fabric on this process's device; several processes are joined into one group, which `shutdown` ends.

    Args:
        precision: `32-true`, `bf16-mixed` or `16-mixed`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        InputError: no such device, unequal numbers of processes on the machines, or fewer GPUs than processes.
        RunFault: the processes do not find each other.
    """
    import logging

    import torch
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import (
        LightningEnvironment,
        SLURMEnvironment,
        TorchElasticEnvironment,
    )
    from lightning_fabric.strategies import DDPStrategy

    from vnet.core.hardware import find_device

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    here, found = rank_info(), find_device(device)
    cuda = found.type == "cuda"
    if here.world_size == 1:
        devices = [found.index or 0] if cuda else 1
        return Fabric(accelerator=found.type, devices=devices, precision=precision, plugins=[LightningEnvironment()])
    if ":" in device:
        raise InputError(f"--device {device}: {here.world_size} processes share the GPUs; take --device cuda or auto")
    require_equal_machines(here, torch.cuda.device_count() if cuda else None)
    try:
        fabric = Fabric(
            accelerator="cuda" if cuda else "cpu",
            devices=here.local_world_size,
            num_nodes=here.world_size // here.local_world_size,
            precision=precision,
            # buffers are equal on all processes: instance norm has none, synchronised batch norm keeps them so
            strategy=DDPStrategy(timeout=GROUP_TIMEOUT, forward_sync_buffers=False, gradient_as_bucket_view=True),
            plugins=[TorchElasticEnvironment() if "TORCHELASTIC_RUN_ID" in os.environ else SLURMEnvironment()],
        )
        fabric.launch()
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise RunFault(
            f"the {here.world_size} processes do not find each other ({reason}); look at MASTER_ADDR, MASTER_PORT, and "
            "that every machine runs the same command"
        ) from None
    return fabric


def require_equal_machines(here: RankInfo, gpus: int | None) -> None:
    """Refuse a layout of processes that Fabric cannot run.

    Args:
        gpus: of this machine; None on the CPU.

    Raises:
        InputError: unequal numbers of processes on the machines, or fewer GPUs than processes.
    """
    if here.world_size % here.local_world_size:
        raise InputError(
            f"{here.local_world_size} processes on this machine, {here.world_size} in all; start as many on every "
            "machine"
        )
    if gpus is not None and gpus < here.local_world_size:
        raise InputError(
            f"{here.local_world_size} processes on this machine, and each sees {gpus} GPU{'s' * (gpus != 1)}; start "
            "one a GPU and let each see all, or set CUDA_VISIBLE_DEVICES= to train on the CPU"
        )


def require_divisible(config: Config, device: str) -> None:
    """Refuse a training that cannot be divided among the processes.

    Args:
        device: type of the device, `cpu` or `cuda`.

    Raises:
        InputError: the batch is no multiple of the processes, or batch norm on several CPU processes.
    """
    world, faults = rank_info().world_size, []
    if config.training.batch % world:
        faults.append(
            f"training.batch must be a multiple of the {world} processes, which share it, got "
            f"{config.training.batch}; change it (then it is another experiment) or start another number"
        )
    if world > 1 and config.network.norm == "batch" and device == "cpu":
        faults.append(
            "network.norm batch takes its statistics over the whole batch, which several processes can only do on "
            "GPUs; set network.norm instance or group, or start one process"
        )
    if faults:
        raise InputError(faults)


def sync_batch_norm(model: M) -> M:
    """The model with batch norms whose statistics span all processes; names and weights stay."""
    from torch import nn

    return nn.SyncBatchNorm.convert_sync_batchnorm(model) if is_distributed() else model


def is_distributed() -> bool:
    """Whether this process is joined with others in a group."""
    if "torch" not in sys.modules:
        return False
    from torch import distributed

    return distributed.is_available() and distributed.is_initialized()


def is_rank_zero() -> bool:
    return rank_info().rank == 0


def shard(items: Sequence[T]) -> list[T]:
    """This process's share of a list: every n-th item from its rank on; may be empty."""
    here = rank_info() if is_distributed() else RankInfo()
    return list(items[here.rank :: here.world_size])


def gather(mine: T) -> list[T]:
    """The values of all processes, ordered by rank, on every process."""
    if not is_distributed():
        return [mine]
    from torch import distributed

    found: list[Any] = [None] * rank_info().world_size
    distributed.all_gather_object(found, mine)
    return found


def unshard(parts: Sequence[Sequence[T]]) -> list[T]:
    """The list of which `parts` are the shares that `shard` makes."""
    return [part[i] for i in range(max(map(len, parts))) for part in parts if i < len(part)]


def on_rank_zero(make: Callable[[], T]) -> T:
    """The value that `make` returns on rank 0, sent to every process; the others wait.

    Raises:
        FailedOnRankZero: on the others, where `make` raised on rank 0.
    """
    if not is_distributed():
        return make()
    from torch import distributed

    outcome: list[Any] = [None, None]  # value, exit code of an error
    try:
        if is_rank_zero():
            outcome[0] = make()
    except BaseException as error:
        outcome[1] = getattr(error, "exit_code", 2 if isinstance(error, OSError) else 1)
        raise
    finally:
        distributed.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise FailedOnRankZero(outcome[1])
    return outcome[0]


def reduce_max(value: float) -> float:
    """The highest value over all processes, on every process."""
    if not is_distributed():
        return value
    import torch
    from torch import distributed

    shared = torch.tensor([value], dtype=torch.float64, device=tensor_device())
    distributed.all_reduce(shared, op=distributed.ReduceOp.MAX)
    return float(shared.item())


def start_all_reduce_mean(terms: Mapping[str, Tensor]) -> Callable[[], dict[str, Tensor]]:
    """Start to average scalars over the processes; the function returned waits for the result and returns it.

    Args:
        terms: names and scalars, each the mean over this process's share; all shares are equally large.
    """
    if not is_distributed():
        return lambda: dict(terms)
    import torch
    from torch import distributed

    # summed in float64, so that the mean of float32 values does not depend on the order
    packed = torch.stack([term.detach() for term in terms.values()]).double()
    work = distributed.all_reduce(packed, async_op=True)

    def wait() -> dict[str, Tensor]:
        work.wait()
        return dict(zip(terms, (packed / rank_info().world_size).float().unbind(), strict=True))

    return wait


def tensor_device() -> str:
    """Type of the device that tensors must lie on to be sent."""
    from torch import distributed

    return "cuda" if distributed.get_backend() == "nccl" else "cpu"


class FailedOnRankZero(RunFault):
    """Rank 0 met an error and reports it; this process ends silently with the same exit code."""

    def __init__(self, exit_code: int) -> None:
        super().__init__([])
        self.exit_code = exit_code


def claim_error_report() -> bool:
    """Whether this process is the one that reports an error: the first of all to ask.

    Before the processes are joined one process of each machine reports, because they cannot ask each other.
    """
    if not is_distributed():
        return rank_info().local_rank == 0
    try:
        return int(store().add(ERROR_REPORTED, 1)) == 1
    except RuntimeError:
        return False  # rank 0, which holds the store, has ended and has reported its error


def is_lost_peer(error: BaseException) -> bool:
    """Whether an error only says that another process has ended."""
    return is_distributed() and isinstance(error, RuntimeError) and ("gloo" in str(error) or "NCCL" in str(error))


def peer_exit_code() -> int | None:
    """The exit code of the first process that ended early, None where it was killed before it could store one."""
    try:
        return int(store().get(EXIT_CODE)) if store().check([EXIT_CODE]) else None
    except RuntimeError:
        return RunFault.exit_code  # the store ended with its process


def shutdown(code: int) -> None:
    """Leave the group; gloo aborts at exit now and then (3 of 16 processes) where this call is missing.

    Args:
        code: exit code of this process. With 0 it waits for the others, else it stores the code for them.
    """
    if not is_distributed():
        return
    from torch import distributed

    shared = store()
    with suppress(RuntimeError):
        if code == 0:
            distributed.barrier()
        else:
            shared.compare_set(EXIT_CODE, "", str(code))
    with suppress(RuntimeError):
        distributed.destroy_process_group()
    if code:
        wait_for_peers(shared)


def wait_for_peers(shared: Any) -> None:
    """Keep rank 0 alive until the others have ended: it may hold the store that they still read.

    Under torchrun the launcher holds the store.
    """
    with suppress(RuntimeError):
        ended, deadline = shared.add(ENDED, 1), time.monotonic() + SECONDS_FOR_PEERS
        while is_rank_zero() and ended < rank_info().world_size and time.monotonic() < deadline:
            time.sleep(0.02)
            ended = shared.add(ENDED, 0)


def store() -> Any:
    """The key-value store of torch.distributed that joined processes share."""
    from torch import distributed

    return distributed.distributed_c10d._get_default_store()
