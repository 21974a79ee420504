"""Training batches as a pure function of (seed, step), prefetched by one thread.

Sample i of step s is number c = s * batch + i of an endless walk: epoch e = c // cases, a permutation of the cases
drawn from (seed, e). The sample's place, rotation and intensities come from one numpy generator seeded by (seed, s, i).
A batch does not depend on earlier calls, on threads, or on how many processes share it.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path
from queue import Empty, Full, Queue
from threading import Event, Thread

import numpy as np
import torch
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor

from vnet.core.errors import RunFault
from vnet.core.randomness import sample_seed
from vnet.data.augmentation import AXES, View, draw_matrix, extract_patch, source_box, vary_intensity
from vnet.data.dataset import Case, Dataset
from vnet.data.preprocessing import Preprocessing
from vnet.data.store import CaseStore, PreparedCase

ORDER, AUGMENTATION = 11, 12  # purposes of random numbers, beside those of vnet.core.randomness
FOREGROUND_SHARE = 0.5
PREFETCHED = 2

Batch = tuple[Tensor, Tensor, tuple[str, ...]]


class TrainingBatches:
    """Batches of patches of the training cases.

    A volume that fits into the patch lies whole at a random place in it. Of a larger volume the patch is a random part,
    along the axes where the volume is larger: with probability `FOREGROUND_SHARE` around a voxel of a random structure,
    else anywhere. Beyond the volume the image and the label are 0 (see `augmentation.extract_patch`).

    Args:
        dataset: for its ignore label.
        cases: labelled, to train on.
        preprocessing: how volumes are prepared.
        patch: voxels (z, y, x).
        batch: samples per step, over all processes.
        seed: of the run.
        cache: folder for prepared volumes, None for memory only.
        mirror: axes among z, y, x that are mirrored with probability 1/2.
        augment: False leaves intensities, rotation, scale and mirroring out; places are still random.
        samples: numbers of the batch's samples that this process makes; None for all.
        foreground_share: probability of a patch around a structure.
    """

    def __init__(
        self,
        dataset: Dataset,
        cases: Sequence[Case],
        preprocessing: Preprocessing,
        *,
        patch: Sequence[int],
        batch: int,
        seed: int,
        cache: Path | str | None = None,
        mirror: Sequence[str] = (),
        augment: bool = True,
        samples: Sequence[int] | None = None,
        foreground_share: float = FOREGROUND_SHARE,
    ) -> None:
        if len(patch) != 3 or min(patch) < 1 or batch < 1:
            raise ValueError(f"patch must hold three positive sizes and batch be positive, got {patch} and {batch}")
        if not set(mirror) <= set(AXES):
            raise ValueError(f"mirror must name axes among z, y, x, got {tuple(mirror)}")
        if not 0 <= foreground_share <= 1:
            raise ValueError(f"foreground_share must lie in [0, 1], got {foreground_share}")
        self.store = CaseStore(cases, preprocessing, cache=cache, ignore=dataset.ignore)
        self.spacing_mm = preprocessing.spacing_mm
        self.patch, self.size, self.seed = tuple(int(n) for n in patch), batch, seed
        self.mirror = tuple(AXES.index(axis) for axis in mirror)
        self.augment, self.foreground_share = augment, foreground_share
        self.samples = tuple(range(batch)) if samples is None else tuple(samples)
        self.orders: dict[int, np.ndarray] = {}

    def batch(self, step: int) -> Batch:
        """Image (B, C, *patch) float32, label (B, *patch) int64 and case names of a step.

        Raises:
            RunFault: a case's files vanished or changed.
        """
        parts = [self.sample(step, number) for number in self.samples]
        images, labels, names = zip(*parts, strict=True)
        return torch.stack(images), torch.stack(labels), names

    def stream(self, start_step: int = 0) -> Generator[Batch, None, None]:
        """Endless batches from `start_step` on, the next ones made by a thread meanwhile; equal to `batch(step)`.

        Close the generator to end the thread. What fails in the thread is raised here.

        Raises:
            RunFault: a case's files vanished or changed, or the thread is no more.
        """
        queue: Queue[Batch | BaseException] = Queue(PREFETCHED)
        stop = Event()
        thread = Thread(target=self.produce, args=(queue, stop, start_step), name="batches", daemon=True)
        thread.start()
        try:
            while True:
                item = take(queue, thread)
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stop.set()
            while thread.is_alive():
                drain(queue)
                thread.join(0.05)

    def produce(self, queue: Queue[Batch | BaseException], stop: Event, step: int) -> None:
        """Put batches, or the error that ends them, into the queue; on one core, the others are the network's."""
        try:
            torch.get_num_threads()  # torch sets a thread's count at its first use; only then does lowering it last
            with threadpool_limits(1, user_api="openmp"):
                self.produce_batches(queue, stop, step)
        except BaseException as error:
            put(queue, stop, error)

    def produce_batches(self, queue: Queue[Batch | BaseException], stop: Event, step: int) -> None:
        """Put the batches of `step` and later into the queue until `stop` is set."""
        while not stop.is_set():
            put(queue, stop, self.batch(step))
            step += 1

    def case_number(self, step: int, number: int) -> int:
        """Index of the case of sample `number` of a step."""
        count = step * self.size + number
        epoch, place = divmod(count, len(self.store.cases))
        order = self.orders.get(epoch)
        if order is None:
            rng = np.random.default_rng(sample_seed(self.seed, epoch, 0, ORDER))
            order = rng.permutation(len(self.store.cases))
            self.orders = {epoch: order}  # replaced whole: another thread may be reading
        return int(order[place])

    def case_names(self, step: int) -> list[str]:
        """Names of the cases in the whole batch of a step, those of other processes too."""
        return [self.store.cases[self.case_number(step, number)].name for number in range(self.size)]

    def sample(self, step: int, number: int) -> tuple[Tensor, Tensor, str]:
        """Image (C, *patch), label (*patch) and case name of one sample."""
        case = self.case_number(step, number)
        prepared = self.store[case]
        rng = np.random.default_rng(sample_seed(self.seed, step, number, AUGMENTATION))
        view = self.draw_view(prepared, rng)
        box = source_box(view, self.patch, prepared.label.shape)
        image = torch.from_numpy(np.array(prepared.image[(slice(None), *box)]))
        label = torch.from_numpy(np.array(prepared.label[box], np.int32))
        if self.augment:
            # before the padding is added, so that it stays 0 as at prediction
            image = vary_intensity(image, int(rng.integers(2**32)))
        shown, marked = extract_patch(image, label, [part.start for part in box], view, self.patch)
        return shown, marked, self.store.cases[case].name

    def draw_view(self, prepared: PreparedCase, rng: np.random.Generator) -> View:
        """A random place, rotation, scale and mirroring; always the same count of numbers is drawn."""
        start = self.draw_start(prepared, rng)
        matrix = draw_matrix(rng, self.spacing_mm)
        flips = rng.random(3) < 0.5
        if not self.augment:
            return View(start, None, ())
        return View(start, matrix, tuple(axis for axis in self.mirror if flips[axis]))

    def draw_start(self, prepared: PreparedCase, rng: np.random.Generator) -> tuple[int, int, int]:
        """First voxel of the patch in the volume; always the same count of numbers is drawn."""
        chance, which, where, *shares = rng.random(6)
        focus = pick_location(prepared.class_locations, which, where) if chance < self.foreground_share else None
        starts = []
        for axis, (have, want, share) in enumerate(zip(prepared.label.shape, self.patch, shares, strict=True)):
            room = have - want
            if room > 0 and focus is not None:
                # the voxel lies in the middle half of the patch, so that the structure is seen with its surroundings
                offset = want // 4 + int(share * max(want // 2, 1))
                starts.append(min(max(focus[axis] - offset, 0), room))
            else:
                starts.append(min(room, 0) + int(share * (abs(room) + 1)))
        return starts[0], starts[1], starts[2]


def pick_location(locations: np.ndarray, which: float, where: float) -> list[int] | None:
    """(z, y, x) of a voxel of a random structure, every structure as likely; None without foreground.

    Args:
        locations: (n, 4) of `PreparedCase.class_locations`.
        which, where: in [0, 1), choose the structure and its voxel.
    """
    values = np.unique(locations[:, 0])
    if not len(values):
        return None
    mine = locations[locations[:, 0] == values[int(which * len(values))]]
    return [int(n) for n in mine[int(where * len(mine)), 1:]]


def put(queue: Queue[Batch | BaseException], stop: Event, item: Batch | BaseException) -> None:
    """Put an item once there is room; give up where `stop` is set."""
    while not stop.is_set():
        try:
            queue.put(item, timeout=0.1)
            return
        except Full:
            continue


def take(queue: Queue[Batch | BaseException], thread: Thread) -> Batch | BaseException:
    """The next item; an error where the thread ended without putting one."""
    while True:
        alive = thread.is_alive()  # asked before the queue: what the thread put before its end is still taken
        try:
            return queue.get(timeout=1.0)
        except Empty:
            if not alive:
                return RunFault("the thread that prepares batches died; run the same command again to continue")


def drain(queue: Queue[Batch | BaseException]) -> None:
    """Empty the queue, so that the thread at its other end does not wait for room."""
    try:
        while True:
            queue.get_nowait()
    except Empty:
        return
