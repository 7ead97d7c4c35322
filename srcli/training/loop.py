"""The training of every stage: one loop, on one device or many, that can be stopped and goes on where it was."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srcli.config.training import TrainConfig
from srcli.console import counted
from srcli.disk import held
from srcli.errors import TrainingError, UsageError
from srcli.images.sheet import save_sheet
from srcli.memory import is_out_of_memory
from srcli.protocol.training import Batch
from srcli.training.checkpoint import Checkpoint, check_settings, checkpoints, newest_checkpoint, save_checkpoint
from srcli.training.data.crops import Sample, StepOrder, finish, make_loader
from srcli.training.data.sources import Skipped, tell_skipped
from srcli.training.launch import lost_another
from srcli.training.memory_need import out_of_memory
from srcli.training.output import alone_after, cannot_go_on
from srcli.training.setup import Setup, make_accelerator, settings_of, shared_state
from srcli.training.signals import StopSignals
from srcli.training.tracking import Means, Progress, Tracker
from srcli.training.validation import validate

log = logging.getLogger("srcli")

SAMPLES = "samples"
BEST = "best"
STOPPED_BY_USER, STOPPED_BY_SYSTEM = "SIGINT", "SIGTERM"
LEFT_OUT_MAX = 32
"""Steps in a row that float16 may leave out because gradients overflow.

Each halves the scale of the loss, which has come down from 65536 to 2e-5 by then: a gradient that is still no number stays none.
"""


@dataclass(frozen=True)
class Stopped:
    """A signal ended the run; its checkpoint is saved."""

    step: int
    reason: str
    """`SIGINT` or `SIGTERM`."""
    processes: int = 1
    """Of the run."""


class Run:
    """A training run.

    Args:
        setup: networks, data and optimisers.
        begun: where it goes on from; None begins it.
    """

    def __init__(self, setup: Setup, begun: Checkpoint | None = None) -> None:
        self.setup = setup
        self.config: TrainConfig = setup.config
        self.trainee = setup.trainee
        self.accelerator = setup.accelerator
        self.step = 0
        self.best = math.inf
        self._left_out = 0
        """Steps in a row whose gradient overflowed."""
        self._means = Means()
        self._named: set[Path] = set()
        if begun is not None:
            self._go_on(begun)

    @property
    def _main(self) -> bool:
        return bool(self.accelerator.is_main_process)

    def run(self, stop: StopSignals) -> Path | Stopped:
        """Train to the end, or until `stop` is set.

        Returns:
            the adapter's folder, or where the run was stopped.

        Raises:
            TrainingError: a loss or gradient is no number, or a file cannot be written; checkpoints stay as they are.
            OutOfMemoryError: memory ran out.
        """
        config, processes = self.config, self.accelerator.num_processes
        if self._main:
            each = config.recipe.batch * config.recipe.accumulate * processes
            told = (processes, "es" * (processes > 1), *self._where(), counted(each, "sample"))
            log.info("%d process%s on `%s` in %s: %s a step", *told)
        try:
            with (
                contextlib.closing(Tracker(config.output, self.step, enabled=self._main)) as tracker,
                Progress(config.recipe.steps, self.step, config.log_every, shown=self._main) as progress,
            ):
                finished = self._steps(stop, tracker, progress)
            if finished:
                return self._finish()
        except OSError as error:
            raise cannot_go_on(self.step, error) from error
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                raise out_of_memory(config, self.accelerator, f"at step {self.step + 1}", self.setup.chunk) from error
            if lost_another(error):
                raise alone_after(self.step) from error
            raise
        return Stopped(self.step, STOPPED_BY_USER if stop.interrupted else STOPPED_BY_SYSTEM, processes)

    def _steps(self, stop: StopSignals, tracker: Tracker, progress: Progress) -> bool:
        """Whether the last step was reached."""
        config, recipe = self.config, self.config.recipe
        if self.step == 0:
            self._validate(tracker)
        accelerator = self.accelerator
        order = StepOrder(
            self.step * recipe.accumulate,
            recipe.steps * recipe.accumulate,
            recipe.batch,
            accelerator.process_index,
            accelerator.num_processes,
        )
        loader = make_loader(self.setup.crops, order, config.workers, pinned=accelerator.device.type == "cuda")
        iterator = iter(loader)
        try:
            while self.step < recipe.steps:
                values, stopped = self._train_step([next(iterator) for _ in range(recipe.accumulate)], stop)
                self.step += 1
                self._means.add(values)
                progress.update(self.step, self._shown())
                self._report(tracker)
                last = self.step == recipe.steps
                if stopped or last or self.step % config.save_every == 0:
                    self._save()
                if stopped and not last:
                    return False
        finally:
            del iterator
        return True

    def _train_step(self, parts: Sequence[Sequence[Sample]], stop: StopSignals) -> tuple[dict[str, float], bool]:
        """One update; the losses, averaged over parts and processes, and whether any process was told to stop."""
        setup, recipe = self.setup, self.config.recipe
        sums: dict[str, Tensor] = {}
        for samples in parts:
            self._tell_skipped(samples)
            batch = finish(samples, self.accelerator.device)
            with self.accelerator.accumulate(*setup.accumulated):
                values = self._backward(batch)
            for name, value in values.items():
                sums[name] = sums.get(name, torch.zeros((), device=self.accelerator.device)) + value / len(parts)
        means, stopped = self._agreed(sums, stop.asked)
        broken = [name for name, value in means.items() if not math.isfinite(value)]
        if broken:
            raise self._not_a_number(f"the loss ({', '.join(broken)})")
        self.trainee.before_step()
        means["gradient"] = float(self.accelerator.clip_grad_norm_(self.trainee.parameters, recipe.clip_norm or math.inf))
        if not math.isfinite(means["gradient"]):
            self._left_out += 1
            if self.accelerator.scaler is None or self._left_out > LEFT_OUT_MAX:
                raise self._not_a_number("the gradient")
            del means["gradient"]  # a scale that is too high: the scaler leaves this step out and lowers it
        else:
            self._left_out = 0
        setup.optimiser.step()
        setup.optimiser.zero_grad()
        setup.schedule.step()
        self.trainee.after_step()
        if setup.average is not None:
            setup.average.step(self.trainee.parameters)
        return means, stopped

    def _backward(self, batch: Batch) -> dict[str, Tensor]:
        """Add the gradients of one batch to the adapter's (and let the discriminator learn)."""
        setup, batch = self.setup, self.trainee.aimed(batch)
        z_sr = self.trainee.forward(self.trainee.prepare(batch))
        scaler = self.accelerator.scaler
        gradient, values, sr = setup.objective.gradient(z_sr, batch, self.step, scaler.get_scale() if scaler else 1.0)
        self.accelerator.backward((z_sr * gradient).sum())
        if setup.critic is not None:
            values |= setup.critic.learn(sr, setup.objective.references(batch.hq), batch.indices, batch.judged)
        return values

    def _agreed(self, sums: dict[str, Tensor], asked: bool) -> tuple[dict[str, float], bool]:
        names = sorted(sums)
        flags = torch.stack([torch.tensor(float(asked), device=self.accelerator.device), *(sums[name].float() for name in names)])
        if self.accelerator.num_processes > 1:
            flags = self.accelerator.reduce(flags, "mean")
        stopped, *values = flags.tolist()
        return dict(zip(names, values, strict=True)), stopped > 0

    def _not_a_number(self, what: str) -> TrainingError:
        saved = checkpoints(self.config.output)
        if saved:
            kept = f"the last good checkpoint is `{saved[-1]}`; "
            lower = f"give another `--output`, `--start-from {saved[-1]}` and a lower `--lr`"
        else:
            kept, lower = "there is no checkpoint yet; ", "begin anew with a lower `--lr`"
        other = "" if self.accelerator.mixed_precision == "no" else ", or go on with `--resume --dtype fp32`"
        return TrainingError(f"{what} is not a number at step {self.step + 1}", f"{kept}{lower}{other}")

    def _where(self) -> tuple[str, str]:
        return self.accelerator.device.type, {"no": "fp32"}.get(
            self.accelerator.mixed_precision, self.accelerator.mixed_precision
        )

    # What is told ----------------------------------------------------------------------------------------------------

    def _shown(self) -> dict[str, float]:
        return {name: value for name, value in self._means.now().items() if name != "gradient"}

    def _report(self, tracker: Tracker) -> None:
        config = self.config
        if self.step % config.log_every == 0 or self.step == config.recipe.steps:
            tracker.write(self.step, "train", {**self._means.take(), "lr": float(self.setup.schedule.get_last_lr()[0])})
        if self.step % config.val_every == 0 or self.step == config.recipe.steps:
            self._validate(tracker)

    def _validate(self, tracker: Tracker) -> None:
        """On the main process alone, with the averaged weights where there are such."""
        setup = self.setup
        if setup.fixed and self._main:
            with setup.averaged():
                verdict = validate(setup.fixed, self.trainee, setup.objective, self.accelerator.device)
                loss = verdict.values.get("loss", math.inf)
                if self.step and loss < self.best:
                    self.best = loss
                    self.trainee.save(self.step, self.config.output / BEST)
            tracker.write(self.step, "val", verdict.values)
            save_sheet(verdict.sheet, self.config.output / SAMPLES / f"step-{self.step:08d}.png")
            tracker.picture(self.step, SAMPLES, verdict.sheet)
            words = ", ".join(f"{name} {value:.4g}" for name, value in verdict.values.items())
            log.info("validation after step %d: %s", self.step, words)
        self.accelerator.wait_for_everyone()

    def _tell_skipped(self, samples: Sequence[Sample]) -> None:
        new: list[Skipped] = []
        for each in (skipped for sample in samples for skipped in sample.skipped):
            if each.path not in self._named:
                self._named.add(each.path)
                new.append(each)
        tell_skipped(new)

    # What is kept ----------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        self.accelerator.wait_for_everyone()
        if self._main:
            settings = settings_of(self.config, self.accelerator.num_processes)
            checkpoint = Checkpoint(self.step, {**self.setup.state(), "best": self.best}, settings)
            save_checkpoint(self.config.output, checkpoint, self._save_learnt, self.config.keep)
        self.accelerator.wait_for_everyone()

    def _save_learnt(self, folder: Path, *, half: bool = False) -> None:
        """With the averaged weights where there are such."""
        with self.setup.averaged():
            self.trainee.save(self.step, folder, half=half)

    def _go_on(self, begun: Checkpoint) -> None:
        self.setup.load_state(begun.state)
        self.step, self.best = begun.step, float(begun.state["best"])
        if self._main:
            log.info("going on from step %d in `%s`", self.step, self.config.output)

    def _finish(self) -> Path:
        folder = self.config.output / self.config.stage
        if self._main:
            self._save_learnt(folder, half=True)
        self.accelerator.wait_for_everyone()
        return folder


def train(config: TrainConfig, base: Path | None) -> Path | Stopped | None:
    """Train an adapter: `config.output` gets `<stage>/`, `checkpoints/`, `best/`, `samples/`, `metrics.jsonl`, `tensorboard/`.

    Args:
        config: all settings.
        base: the base's folder, if the family has one.

    Returns:
        the adapter's folder; where a signal stopped the run, if one did; None in all processes but the first.

    Raises:
        UsageError: data or options that cannot be, or an output that another run writes into.
        ModelError: a base, adapter or checkpoint that cannot be used.
        TrainingError: a loss or gradient that is no number, a file that cannot be written.
        OutOfMemoryError: with the options that help.
    """
    with StopSignals() as stop, shared_state():
        accelerator = make_accelerator(config)
        with held(config.output) if accelerator.is_main_process else contextlib.nullcontext():
            outcome = _ready(config, base, accelerator).run(stop)
        return outcome if accelerator.is_main_process else None


def _ready(config: TrainConfig, base: Path | None, accelerator: Any) -> Run:
    """The run before its first step; whether it may go on is seen before anything is loaded."""
    begun = _begun(config, accelerator) if config.resume else None
    try:
        return Run(Setup(config, base, accelerator), begun)
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise out_of_memory(config, accelerator, "while the run is set up", config.decode_chunk) from error
        raise


def _begun(config: TrainConfig, accelerator: Any) -> Checkpoint | None:
    """The newest checkpoint of the output folder that is whole, if there is one.

    Raises:
        UsageError: it is past the steps that are asked for, or not the same in all processes.
        ModelError: none is whole, or it is of a run with other settings.
    """
    newest = newest_checkpoint(config.output, shown=accelerator.is_main_process)
    folder, found = newest or (config.output, None)
    step = torch.tensor([found.step if found else 0], device=accelerator.device)
    steps = sorted(set(accelerator.gather(step).tolist()))
    if len(steps) > 1:
        message = f"processes find the run at different steps: {', '.join(map(str, steps))}"
        raise UsageError(message, "`--output` must be one folder, that all machines see and can read")
    if found is None:
        return None
    check_settings(folder, found, settings_of(config, accelerator.num_processes))
    if found.step > config.recipe.steps:
        message = f"`{folder}` is past `--steps {config.recipe.steps}`"
        raise UsageError(message, f"it is an adapter as it is; to train on, give more steps than {found.step}")
    return found
