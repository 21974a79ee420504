"""Training batches as a pure function of (seed, step), prefetched by one thread.

Sample i of step s is number c = s * batch + i of an endless walk: epoch e = c // cases, a permutation of the cases
drawn from (seed, e). What is drawn for the sample (place, rotation, intensities) comes from one numpy generator
seeded by (seed, s, i). Nothing depends on what was asked before, on threads, or on how many processes share a batch.
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
from vnet.data.augmentation import AXES, View, draw_matrix, look, needed_box, vary_intensity
from vnet.data.dataset import Case, Dataset
from vnet.data.preprocessing import Preprocessing
from vnet.data.store import CaseStore, PreparedCase

ORDER, AUGMENTATION = 11, 12  # purposes of random numbers, beside those of vnet.core.randomness
FOREGROUND_SHARE = 0.5
PREFETCHED = 2

Batch = tuple[Tensor, Tensor, tuple[str, ...]]


class TrainingBatches:
    """Batches of patches.

    A volume that fits into the patch is shown whole, at a random place in it; of a larger one, along the axes where
    it is larger, a random part: around a voxel of a random structure with probability `FOREGROUND_SHARE`, anywhere
    otherwise. Where the patch reaches beyond the volume the image and the label are 0 (see `augmentation.look`).

    Args:
        dataset: for its ignore label.
        cases: labelled, to train on.
        preprocessing: how volumes are prepared.
        patch: voxels (z, y, x).
        batch: samples per step, over all processes.
        seed: of the run.
        cache: folder for prepared volumes, None for memory only.
        mirror: axes among z, y, x that are mirrored with probability 1/2.
        augment: turn off for plain patches; places are still random.
        samples: which of the batch's samples this process makes; None for all.
        foreground_share: see above.
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
        thread = Thread(target=self.fill, args=(queue, stop, start_step), name="batches", daemon=True)
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

    def fill(self, queue: Queue[Batch | BaseException], stop: Event, step: int) -> None:
        """Put batches into the queue until told to stop, on one core: the others are the network's."""
        try:
            torch.get_num_threads()  # torch sets a thread's count at its first use; only then does lowering it last
            with threadpool_limits(1, user_api="openmp"):
                self.fill_alone(queue, stop, step)
        except BaseException as error:
            put(queue, stop, error)

    def fill_alone(self, queue: Queue[Batch | BaseException], stop: Event, step: int) -> None:
        while not stop.is_set():
            put(queue, stop, self.batch(step))
            step += 1

    def case_number(self, step: int, number: int) -> int:
        """Which case sample `number` of a step shows."""
        count = step * self.size + number
        epoch, place = divmod(count, len(self.store.cases))
        order = self.orders.get(epoch)
        if order is None:
            rng = np.random.default_rng(sample_seed(self.seed, epoch, 0, ORDER))
            order = rng.permutation(len(self.store.cases))
            self.orders = {epoch: order}  # replaced whole: another thread may be reading
        return int(order[place])

    def names(self, step: int) -> list[str]:
        """Cases of the whole batch of a step, those of other processes too."""
        return [self.store.cases[self.case_number(step, number)].name for number in range(self.size)]

    def sample(self, step: int, number: int) -> tuple[Tensor, Tensor, str]:
        """Image (C, *patch), label (*patch) and case name of one sample."""
        case = self.case_number(step, number)
        prepared = self.store[case]
        rng = np.random.default_rng(sample_seed(self.seed, step, number, AUGMENTATION))
        view = self.draw_view(prepared, rng)
        box = needed_box(view, self.patch, prepared.label.shape)
        image = torch.from_numpy(np.array(prepared.image[(slice(None), *box)]))
        label = torch.from_numpy(np.array(prepared.label[box], np.int32))
        if self.augment:
            # before the padding is added, so that it stays 0 as at prediction
            image = vary_intensity(image, int(rng.integers(2**32)))
        shown, marked = look(image, label, [part.start for part in box], view, self.patch)
        return shown, marked, self.store.cases[case].name

    def draw_view(self, prepared: PreparedCase, rng: np.random.Generator) -> View:
        start = self.draw_start(prepared, rng)
        matrix = draw_matrix(rng, self.spacing_mm)
        flips = rng.random(3) < 0.5
        if not self.augment:
            return View(start, None, ())
        return View(start, matrix, tuple(axis for axis in self.mirror if flips[axis]))

    def draw_start(self, prepared: PreparedCase, rng: np.random.Generator) -> tuple[int, int, int]:
        """First voxel of the patch in the volume; always the same count of numbers is drawn."""
        chance, which, where, *shares = rng.random(6)
        focus = pick_place(prepared.class_locations, which, where) if chance < self.foreground_share else None
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


def pick_place(places: np.ndarray, which: float, where: float) -> list[int] | None:
    """(z, y, x) of a voxel of a random structure, every structure as likely; None without foreground.

    Args:
        which, where: in [0, 1), choose the structure and its voxel.
    """
    values = np.unique(places[:, 0])
    if not len(values):
        return None
    mine = places[places[:, 0] == values[int(which * len(values))]]
    return [int(n) for n in mine[int(where * len(mine)), 1:]]


def put(queue: Queue[Batch | BaseException], stop: Event, item: Batch | BaseException) -> None:
    while not stop.is_set():
        try:
            queue.put(item, timeout=0.1)
            return
        except Full:
            continue


def take(queue: Queue[Batch | BaseException], thread: Thread) -> Batch | BaseException:
    """The next item; a thread that died without a word is not waited for."""
    while True:
        alive = thread.is_alive()  # asked first: what it put before its end is still taken
        try:
            return queue.get(timeout=1.0)
        except Empty:
            if not alive:
                return RunFault("the thread that prepares batches died; run the same command again to continue")


def drain(queue: Queue[Batch | BaseException]) -> None:
    try:
        while True:
            queue.get_nowait()
    except Empty:
        return
