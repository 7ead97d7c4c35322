"""The folder that a run writes into: whether it may, and what is said when it cannot."""

from __future__ import annotations

from srcli.config.training import TrainConfig
from srcli.disk import make_output_folder
from srcli.errors import TrainingError, UsageError
from srcli.store.adapter_files import ADAPTER_FILE
from srcli.training.checkpoint import checkpoints, room_hint


def begin_output(config: TrainConfig) -> None:
    """Make sure that `config.output` can be written into, holds no other run's work, and something to go on from if asked to.

    Raises:
        UsageError: it is no folder, or read-only; it holds a run and `config.resume` is not set; or that run is finished and its
            checkpoints are gone.
    """
    done = (config.output / config.stage / ADAPTER_FILE).is_file()
    saved = checkpoints(config.output)
    if not config.resume and (done or saved):
        what = "a finished adapter" if done else "the checkpoints of a run"
        raise UsageError(f"`{config.output}` holds {what}", "go on with `--resume`, or give another `--output`")
    if done and not saved:
        message = f"`{config.output}` holds a finished adapter and no checkpoint to go on from"
        raise UsageError(message, f"to train it further, give another `--output` and `--start-from {config.output}`")
    make_output_folder(config.output)


def cannot_go_on(step: int, error: OSError) -> TrainingError:
    """The error of a run whose files failed it, after `step` steps; what it had saved is as it was."""
    where = f" (`{error.filename}`)" if error.filename else ""
    return TrainingError(f"cannot go on after step {step}: {error.strerror or error}{where}", room_hint(error))


def alone_after(step: int) -> TrainingError:
    """The error of a process that has lost another one of its run, after `step` steps."""
    hint = "its own messages say why; repeat the command with `--resume`: it goes on from the last checkpoint"
    return TrainingError(f"cannot go on after step {step}: another process of this run has ended", hint)
