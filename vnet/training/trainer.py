"""The training loop: batch, loss, step, log, validate, save. What it calls lies beside it, a noun a module."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric

from vnet.core.config import Config
from vnet.core.distributed import on_rank_zero, reduce_max, shard, start_all_reduce_mean, sync_batch_norm
from vnet.core.errors import Preempted, RunFault, StopRequest
from vnet.core.files import naming_path
from vnet.core.hardware import describe_device, peak_memory_mib, reset_peak_memory
from vnet.core.progress import ProgressBar
from vnet.core.randomness import DROPOUT, point_generators, sample_seed
from vnet.core.runs import Run
from vnet.data.batches import Batch, TrainingBatches
from vnet.data.prepared import PreparedData
from vnet.model.losses import total_loss
from vnet.model.segmenter import build_model, count_multiply_adds, count_parameters
from vnet.training.optimizer import build_optimizer, learning_rate, update_weights
from vnet.training.state import StepResult, restore_state, save_state
from vnet.training.validation import LOG_EVERY, RunLogger, Validation, Validator, calibrate_margin, margin_text


class Trainer:
    """Trains one run.

    Args:
        config: of the run.
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
        optimizer = build_optimizer(self.plain, config.training)
        self.progress = restore_state(run, config, dataset, self.plain, optimizer)
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
            augment=config.training.augment,
            samples=self.samples,
        )
        # events and rows of the last step belong to the final evaluation: without it they are written again
        logged = self.progress.step - (self.finished and not self.progress.evaluated)
        active = fabric.is_global_zero and not self.progress.evaluated
        self.logger = RunLogger(config, run.folder, dataset.structures, first_step=logged + 1, active=active)
        self.validator = Validator(config, prepared, run, self.logger, keep_steps=logged)

    @property
    def finished(self) -> bool:
        """Whether all steps are made."""
        return self.progress.fraction(self.config.training) >= 1

    def train(self) -> None:
        """Make all steps that are left.

        Raises:
            Preempted: a signal asked to stop; the run continues from here.
            RunFault: more non-finite steps than allowed.
        """
        if self.finished:
            self.logger.log_curves(self.progress.step, self.progress.last_curves)
            return
        training = self.config.training
        pending: list[StepResult] = []
        with (
            closing(self.batches.stream(self.progress.step)) as batches,
            StopRequest() as stop,
            ProgressBar(self.config.arm, self.start(), self.progress.step) as bar,
            naming_path(self.run.folder),
        ):
            while not self.finished:
                pending.append(self.step(batches))
                step = self.progress.step
                signal = int(reduce_max(stop.exit_code or 0))  # all processes stop at the same step
                validating = not self.finished and training.validate_every > 0 and step % training.validate_every == 0
                saving = self.finished or signal > 0 or step % training.checkpoint_every == 0
                # the newest result is read while the next step runs, unless validation or checkpoint need it now
                while len(pending) > (0 if validating or saving else 1):
                    self.read(pending.pop(0), bar)
                if validating:
                    self.keep_best(self.validator.validate(self.plain, step, dice_alone=True), bar.say)
                    self.log_points()
                if saving:
                    self.progress.peak_memory_mib = max(self.progress.peak_memory_mib, reduce_max(peak_memory_mib()))
                    self.logger.flush()
                    self.save(self.run.last)
                if signal:
                    raise Preempted(signal)

    def step(self, batches: Iterator[Batch]) -> StepResult:
        """Make one optimiser step. Losses are those of the whole batch, over all processes."""
        config, progress = self.config, self.progress
        start = time.perf_counter()
        image, labels, _ = next(batches)
        waited = time.perf_counter() - start
        fraction = progress.fraction(config.training)
        rate = learning_rate(fraction, peak=config.training.learning_rate, schedule=config.training.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        image, labels = self.fabric.to_device((image, labels))
        torch.manual_seed(sample_seed(config.seed, progress.step, self.samples[0], DROPOUT))
        terms = self.model(image, labels, point_generators(config.seed, progress.step, self.samples))
        mean_terms = start_all_reduce_mean(terms)
        self.fabric.backward(total_loss(terms, config.training))
        norm = self.fabric.clip_gradients(
            self.model, self.optimizer, max_norm=config.training.clip_norm, error_if_nonfinite=False
        )
        terms = mean_terms()
        loss = total_loss(terms, config.training)
        dropped = update_weights(self.optimizer, loss, norm, precision=config.training.precision)
        self.optimizer.zero_grad(set_to_none=True)
        progress.step += 1
        seconds = time.perf_counter() - start
        if config.training.seconds is not None:
            seconds = reduce_max(seconds)  # the schedule follows the clock: one clock for all processes
        progress.seconds += seconds
        progress.step_seconds.append(seconds)
        progress.wait_seconds.append(waited)
        terms = {name: term.detach() for name, term in terms.items()}
        return StepResult(progress.step - 1, seconds, rate, terms, loss.detach(), norm, dropped)

    def read(self, result: StepResult, bar: ProgressBar) -> None:
        """Count, log and show the result of a step."""
        self.count_dropped(result)
        step = result.step + 1
        curves = result.curves(self.progress.bad_steps) if step % LOG_EVERY == 0 or step == 1 else {}
        self.logger.log_curves(step, curves)
        if self.finished:
            self.progress.last_curves = curves
        bar.advance(self.progress_text(result), done=step)

    def count_dropped(self, result: StepResult) -> None:
        """Count a dropped step.

        Raises:
            RunFault: more of them than `training.max_bad_steps`.
        """
        if bool(result.dropped):
            self.progress.bad_steps += 1
            if self.progress.bad_steps > self.config.training.max_bad_steps:
                values = ", ".join(f"{name} {term.item():g}" for name, term in result.terms.items())
                raise RunFault(
                    f"{self.run.folder}: {self.progress.bad_steps} steps with a non-finite loss or gradient, the last "
                    f"at step {result.step} with cases {', '.join(self.batches.case_names(result.step))} ({values}); "
                    "lower training.learning_rate, use training.precision 32-true, or look at those cases"
                )

    def progress_text(self, result: StepResult) -> str:
        """Loss, Dice of the last validation, and speed."""
        dice = f" Dice {self.validator.last_dice:.3f}" if self.validator.last_dice is not None else ""
        rate = 1 / np.median(self.progress.step_seconds[-20:])
        return f"loss {result.loss.item():.3f}{dice} {rate:.1f} steps/s"

    def keep_best(self, validation: Validation, say: Callable[[str], None]) -> None:
        """Say the Dice of a validation, and write best.ckpt where it is the best so far."""
        if not self.prepared.fold.val:
            return
        progress = self.progress
        say(f"step {progress.step}: {validation.text()}")
        if validation.dice > progress.best_dice:
            progress.best_dice, progress.best_step = validation.dice, progress.step
            self.save(self.run.best)

    def log_points(self) -> None:
        """Log the training points that the network as it stands would draw in the first volume that it saw."""
        if self.plain.head is None or not self.logger.active:
            return
        image, labels, _ = self.batches.sample(0, 0)
        self.plain.eval()
        shown, marked = self.fabric.to_device((image[None], labels[None]))
        step = self.progress.step
        index = self.plain.draw_points(shown, marked, point_generators(self.config.seed, step, [0]))
        self.logger.log_points(step, image, labels, index[0], self.batches.spacing_mm)

    def evaluate(self) -> Validation:
        """Score the validation fold with the weights at the end: every metric, and the last events of the log."""
        names = self.prepared.fold.val
        self.progress.last_curves = {}
        if self.config.points.max_margin == "auto" and self.plain.head is not None:
            self.calibrate()
        reset_peak_memory()
        with ProgressBar("evaluating", len(shard(names))) as bar, naming_path(self.run.folder):
            validation = self.validator.validate(self.plain, self.progress.step, dice_alone=False, advance=bar.advance)
            self.keep_best(validation, bar.say)
        if not self.progress.evaluated:
            with naming_path(self.run.folder):
                self.log_points()
                self.logger.finish(self.progress.step)
            self.progress.evaluated = True
            self.save(self.run.last)
        return validation

    def calibrate(self) -> None:
        """Measure the margin of `points.max_margin: auto`, write it to run.json and say what it holds."""
        self.plain.eval()
        facts = calibrate_margin(self.plain, self.prepared, self.config)
        on_rank_zero(lambda: self.run.write_info(**facts))
        print(margin_text(facts), flush=True)

    def save(self, path: Path) -> None:
        """Write a checkpoint."""
        save_state(path, self.run, self.prepared, self.plain, self.optimizer, self.progress)

    def start(self) -> int:
        """Warm up, print what the training takes, and return the steps to expect in all."""
        config, training, progress = self.config, self.config.training, self.progress
        image, labels = self.fabric.to_device(self.batches.batch(progress.step)[:2])

        def forward_and_backward() -> None:
            terms = self.model(image, labels, point_generators(config.seed, 0, self.samples))
            self.fabric.backward(total_loss(terms, training))

        seconds = warm_up(self.plain, forward_and_backward)
        steps = training.steps if training.seconds is None else math.ceil(training.seconds / seconds)
        left = (training.seconds or training.steps * seconds) * (1 - progress.fraction(training))
        processes = f", {self.fabric.world_size} processes" if self.fabric.world_size > 1 else ""
        if self.fabric.is_global_zero:
            line = (
                f"{config.arm} on {describe_device(self.fabric.device)}, {training.precision}: "
                f"{count_parameters(self.plain):,} parameters, "
                f"{count_multiply_adds(self.plain, image[:1]) / 1e9:.2f} G multiply-adds a volume, "
                f"{len(self.prepared.fold.train)} training and {len(self.prepared.fold.val)} validation cases, "
                f"steps {progress.step} to {steps}, {peak_memory_mib():.0f} MiB, "
                f"about {left / 60:.1f} minutes and validation{processes}"
            )
            print(line, flush=True)
            self.run.log(line)
        return steps


def warm_up(model: torch.nn.Module, forward_and_backward: Callable[[], None]) -> float:
    """Seconds of the faster of two passes; buffers and gradients of `model` are afterwards as before."""
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    seconds = math.inf
    model.train()
    for _ in range(2):
        start = time.perf_counter()
        forward_and_backward()
        model.zero_grad(set_to_none=True)
        seconds = min(seconds, time.perf_counter() - start)
    for name, value in model.named_buffers():
        value.copy_(buffers[name])
    return seconds
