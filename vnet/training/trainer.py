"""The training loop, in the open: batch, loss, step, log, validate, save."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from vnet.core.config import Config, TrainingConfig
from vnet.core.distributed import gather, on_rank_zero, reduce_max, shard, start_mean, sync_batch_norm, unshard
from vnet.core.errors import RunFault
from vnet.core.files import naming
from vnet.core.hardware import peak_memory_mib
from vnet.core.progress import Bar
from vnet.core.randomness import DROPOUT, point_generators, sample_seed
from vnet.core.runs import Run
from vnet.core.signals import Preempted, StopRequest
from vnet.core.tables import read_table, write_table
from vnet.data.batches import TrainingBatches
from vnet.data.prepared import PreparedData
from vnet.evaluation.scores import DiceTable, mean_dice, predict_cases
from vnet.model.checkpoints import load_weights, read_checkpoint, save_checkpoint, start_from
from vnet.model.profiling import count_multiply_adds
from vnet.model.segmenter import build_model
from vnet.report.tensorboard import Board
from vnet.report.validation_log import (
    open_page,
    show_cases,
    show_dice,
    show_first_case,
    show_points,
    show_refinement,
    summarise_case,
)
from vnet.training.schedule import learning_rate

LOG_EVERY = 5  # steps between scalars in the event file


@dataclass
class Progress:
    """Where a run stands: all that continuing needs beside weights and optimiser."""

    step: int = 0
    seconds: float = 0.0
    best_dice: float = -1.0
    best_step: int = 0
    bad_steps: int = 0
    step_seconds: list[float] = field(default_factory=list)
    wait_seconds: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Outcome:
    """What a step gave, still on the device: read a step later, so that the device never waits for the host."""

    step: int
    seconds: float
    rate: float
    terms: dict[str, Tensor]
    loss: Tensor
    norm: Tensor
    dropped: Tensor


def build_optimizer(model: torch.nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW or SGD over every parameter; norms, biases and activation slopes are not decayed."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(
            groups, lr=config.learning_rate, fused=True
        )  # 3 times the speed of the loop, on the CPU too
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=0.99, nesterov=True, fused=True)


def total_loss(terms: Mapping[str, Tensor], config: TrainingConfig) -> Tensor:
    weights = {"point": config.point_weight, "point_dice": config.point_dice_weight}
    return torch.stack([weights.get(name, 1.0) * term for name, term in terms.items()]).sum()


class Trainer:
    """One run's model, data and progress.

    Args:
        config: the run.
        prepared: its checked data.
        run: its folder.
        fabric: device, precision and processes.
    """

    def __init__(self, config: Config, prepared: PreparedData, run: Run, fabric: Fabric) -> None:
        self.config, self.prepared, self.run, self.fabric = config, prepared, run, fabric
        dataset = prepared.dataset
        self.plain = sync_batch_norm(
            build_model(
                config, in_channels=len(dataset.modalities), classes=len(dataset.structures), ignore=dataset.ignore
            )
        )
        self.progress = Progress()
        self.history: list[dict[str, Any]] = []
        optimizer = build_optimizer(self.plain, config.training)
        self.restore(optimizer)
        self.require_same_start()
        self.model, self.optimizer = fabric.setup(self.plain, optimizer)
        share = config.training.batch // fabric.world_size
        self.samples = range(fabric.global_rank * share, (fabric.global_rank + 1) * share)
        self.batches = TrainingBatches(
            dataset,
            list(prepared.unchanged_cases(prepared.fold.train)),
            prepared.preprocessing,
            patch=config.training.patch,
            batch=config.training.batch,
            seed=config.seed,
            cache=config.cache_folder,
            mirror=config.training.mirror,
            samples=self.samples,
        )

    def restore(self, optimizer: torch.optim.Optimizer) -> None:
        """Continue from the last checkpoint, or start from `training.init_from`."""
        if self.run.last.is_file():
            state = read_checkpoint(self.run.last)
            load_weights(self.plain, state, self.run.last)
            optimizer.load_state_dict(state["optimizer"])
            self.progress = Progress(**state["progress"])
            done = [
                row for row in read_table(self.run.folder / "metrics.csv") if int(row["step"]) <= self.progress.step
            ]
            self.history = [dict(row) for row in done]
        elif self.config.training.init_from:
            line = start_from(self.plain, Path(self.config.training.init_from), self.prepared.dataset)
            print(line, flush=True)
            self.run.log(line)

    def require_same_start(self) -> None:
        """Each process has read the checkpoint itself: they must have seen the same."""
        if len(steps := set(gather(self.progress.step))) > 1:
            raise RunFault(
                f"{self.run.last}: processes find steps {sorted(steps)} there; put run_root on a file system that all "
                "machines share"
            )

    def save(self, path: Path) -> None:
        dataset = self.prepared.dataset
        state = {
            "model": self.plain.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": asdict(self.progress),
            "config_hash": self.run.config_hash,
            "preprocessing": self.prepared.preprocessing.to_dict(),
            "structures": list(dataset.structures),
            "in_channels": len(dataset.modalities),
            "ignore": dataset.ignore,
        }
        on_rank_zero(lambda: save_checkpoint(path, state))

    def share(self) -> float:
        """Progress in [0, 1]: of the steps, or of the seconds where those are given."""
        training = self.config.training
        if training.seconds is not None:
            return self.progress.seconds / training.seconds
        return self.progress.step / training.steps

    def train(self) -> None:
        """Run to the end.

        Raises:
            Preempted: a signal asked to stop; the run continues from here.
            RunFault: more non-finite steps than allowed.
        """
        if self.share() >= 1:
            return
        expected = self.rehearse()
        board = self.open_board()
        total = self.config.training.steps if self.config.training.seconds is None else math.ceil(expected)
        with (
            closing(board) if board else nullcontext(),
            closing(self.batches.stream(self.progress.step)) as stream,
            StopRequest() as stop,
            Bar(f"{self.config.arm}", total, self.progress.step) as bar,
            naming(self.run.folder),
        ):
            unread: list[Outcome] = []
            while self.share() < 1:
                unread.append(self.step(stream))
                step = self.progress.step
                asked = int(reduce_max(stop.exit_code or 0))  # all processes stop at the same step
                finished = self.share() >= 1
                every = self.config.training.validate_every
                validating = finished or (every > 0 and step % every == 0)
                saving = finished or asked > 0 or step % self.config.training.checkpoint_every == 0
                # the newest is read while the next step runs, unless something looks at where training stands
                while len(unread) > (0 if validating or saving else 1):
                    outcome = unread.pop(0)
                    done = outcome.step + 1
                    self.settle(outcome)
                    if board and (done % LOG_EVERY == 0 or done == 1):
                        self.log(outcome, board)
                    bar.advance(self.note(outcome), done=done)
                if validating:
                    self.validate(board, bar)
                    if board:
                        self.show_points(board)
                if finished and board:
                    board.finish(step)
                if saving:
                    if board:  # first the curves, which are not drawn again for steps that the checkpoint holds
                        board.flush()
                    self.save(self.run.last)
                if asked and not finished:
                    raise Preempted(asked)

    def open_board(self) -> Board | None:
        """The run's event files, of the first process; points past the checkpoint are taken back, so that none shows
        twice."""
        if not self.fabric.is_global_zero:
            return None
        first = self.progress.step + 1
        if first == 1:
            for file in self.run.folder.glob("events.out.tfevents.*"):
                file.unlink()
            board = Board(self.run.folder)
            open_page(board, self.config, self.prepared.dataset.structures)
            return board
        return Board(self.run.folder, start_step=first)

    def step(self, stream: Iterable) -> Outcome:
        """One optimiser step; a non-finite one is dropped and counted. Losses are those of the whole batch."""
        config, progress = self.config, self.progress
        start = time.perf_counter()
        image, labels, _ = next(stream)  # type: ignore[call-overload]
        waited = time.perf_counter() - start
        rate = learning_rate(self.share(), peak=config.training.learning_rate, schedule=config.training.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        image, labels = self.fabric.to_device((image, labels))
        torch.manual_seed(sample_seed(config.seed, progress.step, self.samples[0], DROPOUT))
        terms = self.model(image, labels, point_generators(config.seed, progress.step, self.samples))
        mean_terms = start_mean(terms)
        self.fabric.backward(total_loss(terms, config.training))
        norm = self.fabric.clip_gradients(
            self.model, self.optimizer, max_norm=config.training.clip_norm, error_if_nonfinite=False
        )
        terms = mean_terms()
        loss = total_loss(terms, config.training)
        dropped = self.apply(loss, norm)
        self.optimizer.zero_grad(set_to_none=True)
        progress.step += 1
        seconds = time.perf_counter() - start
        if config.training.seconds is not None:
            seconds = reduce_max(seconds)  # the schedule follows the clock: one clock
        progress.seconds += seconds
        progress.step_seconds.append(seconds)
        progress.wait_seconds.append(waited)
        terms = {name: term.detach() for name, term in terms.items()}
        return Outcome(progress.step - 1, seconds, rate, terms, loss.detach(), norm, dropped)

    def apply(self, loss: Tensor, norm: Tensor) -> Tensor:
        """Update the weights, unless loss or gradient are not finite: decided on the device. Whether it was dropped."""
        finite = torch.isfinite(loss)
        if self.config.training.precision != "16-mixed":
            finite = finite & torch.isfinite(norm)
            # the fused optimisers leave weights and moments alone where this is 1, as for torch's loss scaler, which
            # sets it itself with 16-bit floats and drops steps of too large a scale, as it should
            self.optimizer.optimizer.found_inf = (~finite).float()
        self.optimizer.step()
        return ~finite

    def settle(self, outcome: Outcome) -> None:
        """Count a dropped step.

        Raises:
            RunFault: more of them than `training.max_bad_steps`.
        """
        if bool(outcome.dropped):
            self.progress.bad_steps += 1
            if self.progress.bad_steps > self.config.training.max_bad_steps:
                values = ", ".join(f"{name} {term.item():g}" for name, term in outcome.terms.items())
                raise RunFault(
                    f"{self.run.folder}: {self.progress.bad_steps} steps with a non-finite loss or gradient, the last "
                    f"at step {outcome.step} with cases {', '.join(self.batches.names(outcome.step))} ({values}); "
                    "lower training.learning_rate, use training.precision 32-true, or look at those cases"
                )

    def log(self, outcome: Outcome, board: Board) -> None:
        """The step's curves."""
        board.scalars(
            outcome.step + 1,
            {"loss/total": outcome.loss.item()}
            | {f"loss/{name}": term.item() for name, term in outcome.terms.items()}
            | {"optimiser/learning_rate": outcome.rate, "optimiser/gradient_norm": outcome.norm.item()}
            | {"optimiser/dropped_steps": float(self.progress.bad_steps)}
            | {"speed/steps_per_second": 1 / outcome.seconds},
        )

    def note(self, outcome: Outcome) -> str:
        """Loss, Dice and speed for the progress bar."""
        loss = outcome.loss.item()
        dice = f" Dice {float(self.history[-1]['dice']):.3f}" if self.history else ""
        return f"loss {loss:.3f}{dice} {1 / np.median(self.progress.step_seconds[-20:]):.1f} steps/s"

    def validate(self, board: Board | None, bar: Bar) -> None:
        """Score the fold's validation cases; a row in metrics.csv, curves and pictures in TensorBoard."""
        if not self.prepared.fold.val:
            return
        cases = self.prepared.unchanged_cases(tuple(shard(self.prepared.fold.val)))
        self.plain.eval()
        structures, ignore = self.prepared.dataset.structures, self.prepared.dataset.ignore
        start = time.perf_counter()
        scores, stories = DiceTable(structures, ignore), []
        for number, scored in enumerate(predict_cases(self.plain, cases, self.prepared.preprocessing, self.config)):
            stories.append(summarise_case(scored, scores.add(scored), structures, ignore))
            if board and number == 0:  # the same case each time, so that the slider shows it learn
                show_first_case(board, self.progress.step, scored, len(structures))
        scores.merge(gather(scores.scores))
        stories = unshard(gather(stories))
        means = scores.means()
        seconds = time.perf_counter() - start
        final = mean_dice(means[max(means)])  # refined, where there is a refined version
        step = self.progress.step
        row: dict[str, Any] = {"step": step, "dice": final, "dice_unrefined": mean_dice(means[False])}
        row |= {f"dice_{name}": means[max(means)].get(name) for name in structures[1:]}
        row |= {f"dice_unrefined_{name}": means[False].get(name) for name in structures[1:]}
        self.history.append(row | {"seconds_validation": seconds})
        on_rank_zero(lambda: write_table(self.run.folder / "metrics.csv", self.history))
        if board:
            show_dice(board, step, means)
            show_cases(board, step, stories)
            show_refinement(board, step, stories, structures, self.config.arm)
        bar.say(
            f"step {step}: validation Dice {final:.4f}"
            + ("" if len(means) == 1 else f" (unrefined {row['dice_unrefined']:.4f})")
        )
        if final > self.progress.best_dice:
            self.progress.best_dice, self.progress.best_step = final, step
            self.save(self.run.best)

    def show_points(self, board: Board) -> None:
        """Where training would look now, in the first volume that it saw."""
        if self.plain.head is None:
            return
        image, labels, _ = self.batches.sample(0, 0)
        self.plain.eval()
        shown, marked = self.fabric.to_device((image[None], labels[None]))
        index = self.plain.draw_points(shown, marked, point_generators(self.config.seed, self.progress.step, [0]))
        classes = len(self.prepared.dataset.structures)
        show_points(board, self.progress.step, image, labels, index[0], self.batches.spacing_mm, classes)

    def rehearse(self) -> float:
        """Two throw-away steps: print what training takes, and return the steps to expect in all."""
        config, training = self.config, self.config.training
        buffers = {name: value.clone() for name, value in self.plain.named_buffers()}
        image, labels, _ = self.batches.batch(self.progress.step)
        image, labels = self.fabric.to_device((image, labels))
        seconds = math.inf
        self.model.train()
        for _ in range(2):
            start = time.perf_counter()
            terms = self.model(image, labels, point_generators(config.seed, 0, self.samples))
            self.fabric.backward(total_loss(terms, training))
            self.optimizer.zero_grad(set_to_none=True)
            seconds = min(seconds, time.perf_counter() - start)
        for name, value in self.plain.named_buffers():
            value.copy_(buffers[name])
        left = training.seconds or training.steps * seconds
        expected = training.seconds / seconds if training.seconds else training.steps
        parameters = sum(p.numel() for p in self.plain.parameters())
        if not self.fabric.is_global_zero:
            return expected
        shared = f", {self.fabric.world_size} processes" if self.fabric.world_size > 1 else ""
        line = (
            f"{config.arm}: {parameters:,} parameters, "
            f"{count_multiply_adds(self.plain, image[:1]) / 1e9:.2f} G multiply-adds a volume, "
            f"{len(self.prepared.fold.train)} training and {len(self.prepared.fold.val)} validation cases, "
            f"steps {self.progress.step} to {expected:.0f}, {peak_memory_mib():.0f} MiB, "
            f"about {left * (1 - self.share()) / 60:.1f} minutes and validation{shared}"
        )
        print(line, flush=True)
        self.run.log(line)
        return expected
