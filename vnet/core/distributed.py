"""One run on several processes, as `torchrun` or SLURM's `srun` starts them; with one, nothing here does a thing.

Every process holds the whole model and makes its share of each batch; of cases it takes every n-th. What is read or
written for all is done by the first process (rank 0). Importing this module imports neither torch nor Fabric.
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
# The others wait this long while the first reads a whole data set; one that dies is noticed at once.
PATIENCE = timedelta(hours=2)
SECONDS_TO_STAY = 3.0
CLAIM, CODE, LEFT = "vnet/first to speak", "vnet/exit code", "vnet/left"  # words in the store


@dataclass(frozen=True)
class RankInfo:
    """Which process this is, as the launcher says: of all, and of those on this machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1


def rank_info() -> RankInfo:
    """From the environment: torchrun's, else that of a job step of SLURM, else a process alone."""
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:
        return RankInfo(*(int(env[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")))
    # the batch script and an interactive shell carry SLURM_NTASKS too, but are no task
    if "SLURM_STEP_ID" in env and env.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        world = int(env.get("SLURM_NTASKS", 1))
        local = int(env.get("SLURM_NTASKS_PER_NODE", world // int(env.get("SLURM_NNODES", 1))))
        return RankInfo(int(env.get("SLURM_PROCID", 0)), world, int(env.get("SLURM_LOCALID", 0)), local)
    return RankInfo()


def available_cores() -> int:
    """CPU cores of this process: those the machine lets it use, divided among the processes there."""
    free, here = len(os.sched_getaffinity(0)), rank_info()
    bound = os.environ.get("SLURM_CPUS_PER_TASK") if here.world_size > 1 else None
    return min(free, int(bound)) if bound else max(free // here.local_world_size, 1)


def launch_fabric(precision: str = "32-true", device: str = "auto") -> Fabric:
    """Fabric on this process's device, with all processes of the launcher joined into one group (`leave` ends it).

    Args:
        precision: `32-true`, `bf16-mixed` or `16-mixed`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        InputError: no such device, machines of unequal numbers of processes, or fewer GPUs than processes.
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

    from vnet.core.devices import find_device

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
            # no buffer differs between processes: instance norm has none, synchronised batch norm keeps equal ones
            strategy=DDPStrategy(timeout=PATIENCE, forward_sync_buffers=False, gradient_as_bucket_view=True),
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
    """Raises `InputError` where the processes cannot be laid out; `gpus` of this machine, None on the CPU."""
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
    """Raises `InputError` where a training cannot be divided among the processes.

    Args:
        device: its type, `cpu` or `cuda`.
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
    """The model, its batch norms counting over all processes; names and weights stay as they are."""
    from torch import nn

    return nn.SyncBatchNorm.convert_sync_batchnorm(model) if is_distributed() else model


def is_distributed() -> bool:
    """Whether this process is joined with others."""
    if "torch" not in sys.modules:
        return False
    from torch import distributed

    return distributed.is_available() and distributed.is_initialized()


def is_rank_zero() -> bool:
    return rank_info().rank == 0


def shard(items: Sequence[T]) -> list[T]:
    """What this process does of a list: every n-th, maybe none."""
    here = rank_info() if is_distributed() else RankInfo()
    return list(items[here.rank :: here.world_size])


def gather(mine: T) -> list[T]:
    """Everybody's value, by rank, on every process."""
    if not is_distributed():
        return [mine]
    from torch import distributed

    found: list[Any] = [None] * rank_info().world_size
    distributed.all_gather_object(found, mine)
    return found


def unshard(parts: Sequence[Sequence[T]]) -> list[T]:
    """The list whose shares (`shard`) are `parts`."""
    return [part[i] for i in range(max(map(len, parts))) for part in parts if i < len(part)]


def on_rank_zero(make: Callable[[], T]) -> T:
    """What `make` returns on the first process, on every process; the others wait for it.

    Raises:
        FailedOnRankZero: on the others, where `make` raised on the first.
    """
    if not is_distributed():
        return make()
    from torch import distributed

    outcome: list[Any] = [None, None]  # value, exit code of a fault
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
    """The highest value of any process."""
    if not is_distributed():
        return value
    import torch
    from torch import distributed

    shared = torch.tensor([value], dtype=torch.float64, device=tensor_device())
    distributed.all_reduce(shared, op=distributed.ReduceOp.MAX)
    return float(shared.item())


def start_mean(terms: Mapping[str, Tensor]) -> Callable[[], dict[str, Tensor]]:
    """Begin to average scalars over the processes, whose shares are equal; the result waits for it and gives them."""
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
    """Device type of tensors that can be sent."""
    from torch import distributed

    return "cuda" if distributed.get_backend() == "nccl" else "cpu"


class FailedOnRankZero(RunFault):
    """Another process met a fault and says so; this one ends without a word."""

    def __init__(self, exit_code: int) -> None:
        super().__init__([])
        self.exit_code = exit_code


def claim_error_report() -> bool:
    """Whether no other process has reported a fault yet; then it is this one's to report.

    Before the processes are joined one on each machine speaks: they do not know of each other.
    """
    if not is_distributed():
        return rank_info().local_rank == 0
    try:
        return int(store().add(CLAIM, 1)) == 1
    except RuntimeError:
        return False  # the first process, which holds the store, has gone and has had its say


def is_lost_peer(error: BaseException) -> bool:
    """Whether an error only says that another process has gone."""
    return is_distributed() and isinstance(error, RuntimeError) and ("gloo" in str(error) or "NCCL" in str(error))


def peer_exit_code() -> int | None:
    """The exit code of the first process that left early, None where one went without a word."""
    try:
        return int(store().get(CODE)) if store().check([CODE]) else None
    except RuntimeError:
        return RunFault.exit_code  # gone with the store


def shutdown(code: int) -> None:
    """End the group with this process's exit code; without it gloo aborts at exit now and then.

    With code 0 it waits for the others; with another it leaves them word of why they will miss it.
    """
    if not is_distributed():
        return
    from torch import distributed

    words = store()
    with suppress(RuntimeError):
        if code == 0:
            distributed.barrier()
        else:
            words.compare_set(CODE, "", str(code))
    with suppress(RuntimeError):
        distributed.destroy_process_group()
    if code:
        wait_for_peers(words)


def wait_for_peers(words: Any) -> None:
    """Where the first process holds the store (torchrun holds it itself), it goes last: the others still read there."""
    with suppress(RuntimeError):
        gone, patience = words.add(LEFT, 1), time.monotonic() + SECONDS_TO_STAY
        while is_rank_zero() and gone < rank_info().world_size and time.monotonic() < patience:
            time.sleep(0.02)
            gone = words.add(LEFT, 0)


def store() -> Any:
    """Where joined processes leave words for each other."""
    from torch import distributed

    return distributed.distributed_c10d._get_default_store()
