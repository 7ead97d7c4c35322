"""Everything a run needs, put together once: devices, networks, data, losses, optimisers, and their state."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import warnings
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from srcli.config.training import TrainConfig
from srcli.console import counted
from srcli.errors import ModelError, UsageError
from srcli.families import families, load_trainee
from srcli.memory import free_bytes, keep_large_blocks
from srcli.networks.device import bf16_pays, choose_device
from srcli.networks.dino import DINO, dino
from srcli.networks.features import FeatureNetwork, efficientnet_lite
from srcli.networks.perceptual import lpips_network, vgg16
from srcli.store.adapter_files import find_adapter
from srcli.store.weights import sha256_of
from srcli.training.checkpoint import checkpoints
from srcli.training.data.captions import full_prompt, read_captions
from srcli.training.data.crops import Batch, Sample, TrainingCrops, crop_settings, finish
from srcli.training.data.held_out import find_photos
from srcli.training.data.sources import Source
from srcli.training.launch import Place, find_place, meeting, spread
from srcli.training.losses.critic import Critic
from srcli.training.memory_need import decode_chunk, memory_need
from srcli.training.objective import Objective
from srcli.training.output import cannot_go_on
from srcli.training.ranks import read_ranks, write_ranks
from srcli.training.validation import fixed_samples

log = logging.getLogger("srcli")

_PRECISIONS = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_FEW_PROMPTS = 256
"""So many prompts are embedded before the start, and the text encoder dropped."""


class Setup:
    """The parts of a run.

    Args:
        config: of the run.
        base: the base's folder, if there is one.
        accelerator: of `make_accelerator`; made here if not given.

    Attributes:
        trainee, crops, objective, critic, optimiser, schedule: see their classes.
        fixed: samples for validation; may be empty.
        average: of the adapter's weights, or None.
        accumulated: what gradients are accumulated for.
    """

    def __init__(self, config: TrainConfig, base: Path | None, accelerator: Any = None) -> None:
        self.config = config
        self._base_sum = sha256_of(base) if base is not None and base.is_file() else ""
        recipe = config.recipe
        self.accelerator = accelerator or make_accelerator(config)
        torch.manual_seed(config.seed)  # of the adapter's first weights, the same in all processes
        sources, held_out = find_photos(config, shown=self._main)
        if self.accelerator.device.type == "cpu":
            keep_large_blocks()
        self.trainee = load_trainee(config, base, self.accelerator.device, _PRECISIONS[self.accelerator.mixed_precision])
        trained_on = [photo.hq for source in sources for photo in source.photos]
        prompts = self._prompts([*trained_on, *(photo.hq for photo in held_out)])
        settings = crop_settings(config, prompts)
        self.fixed: list[Sample] = fixed_samples(held_out, settings) if self._main else []
        on_device = self.accelerator.device.type == "cuda"
        self.crops = TrainingCrops(sources, replace(settings, degrade_later=on_device))
        self._drawn_from = _digest(sources)
        self.lpips = lpips_network(self.accelerator.device) if recipe.losses.lpips else None
        self._feature_networks: dict[str, FeatureNetwork] = {}
        self.features = self._feature_network(recipe.features.network, "`--features`") if recipe.losses.features else None
        self.critic = self._make_critic()
        self.chunk = decode_chunk(config, self.trainee)
        self.objective = Objective(recipe, self.trainee, self.lpips, self.features, self.critic, self.chunk)
        self._settle()
        self._state_memory()
        self._make_optimiser()

    @property
    def _main(self) -> bool:
        return bool(self.accelerator.is_main_process)

    def _feature_network(self, name: str, needed_by: str) -> FeatureNetwork:
        """One for all that want it."""
        if name not in self._feature_networks:
            known = {DINO: dino, "vgg16": vgg16}
            make = known.get(name) or partial(efficientnet_lite, name)
            self._feature_networks[name] = make(self.accelerator.device, needed_by)
        return self._feature_networks[name]

    def _make_critic(self) -> Critic | None:
        gan = self.config.recipe.gan
        if not self.config.recipe.losses.gan:
            return None
        projected = None if gan.network == "unet" else self._feature_network(gan.network, "`gan.network`")
        return Critic(gan, self.config.seed, self.accelerator, projected)

    def _settle(self) -> None:
        """Let the trainee decide by the first samples, or as it did where the run goes on."""
        config, device = self.config, self.accelerator.device
        known = read_ranks(config.output) if config.resume and checkpoints(config.output) else {}

        def sample(index: int) -> Batch:
            return finish([self.crops[index]], device)

        ranks = self.trainee.settle(known, sample, lambda z_sr, batch: self.objective.gradient(z_sr, batch, step=-1)[0])
        if ranks and self._main:
            try:
                write_ranks(config.output, ranks)
            except OSError as error:
                raise cannot_go_on(0, error) from error

    def _make_optimiser(self) -> None:
        from diffusers.optimization import get_scheduler
        from diffusers.training_utils import EMAModel

        recipe, parameters = self.config.recipe, self.trainee.parameters
        optimiser = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
        name = "constant_with_warmup" if recipe.schedule == "constant" else recipe.schedule
        self.schedule = get_scheduler(name, optimiser, num_warmup_steps=recipe.warmup, num_training_steps=recipe.steps)
        with spread():
            self.trainee.trained, self.optimiser = self.accelerator.prepare(self.trainee.network, optimiser)
        self.average = EMAModel(parameters, decay=recipe.ema) if recipe.ema else None
        self.accumulated: list[nn.Module] = [self.trainee.trained]

    def _prompts(self, photos: list[Path]) -> dict[Path, str]:
        """The positive prompt of every photo, of those for validation too, where the stage asks for them."""
        config = self.config
        loss = families()[config.family].stages[config.stage].captions
        if not loss or not getattr(config.recipe.losses, loss):
            return {}
        with self.accelerator.main_process_first():
            cache = config.output / "captions.tsv"
            captions = read_captions(config.captions, photos, cache=cache, device=self.accelerator.device)
        if captions.missing and config.captions and self._main:
            named = ", ".join(f"`{path.name}`" for path in captions.missing[:5])
            photos_without = counted(len(captions.missing), "photo")
            log.warning("the fixed prompt alone is used for %s without a caption: %s …", photos_without, named)
        positive = str(config.told.get("prompts.positive", ""))
        prompts = {path: full_prompt(captions.by_path.get(path, ""), positive) for path in photos}
        distinct = sorted(set(prompts.values()))
        if len(distinct) <= _FEW_PROMPTS:
            self.trainee.know(distinct)
        return prompts

    # Memory ----------------------------------------------------------------------------------------------------------

    def _state_memory(self) -> None:
        networks = (self.lpips, *self._feature_networks.values(), self.critic.network if self.critic else None)
        others = [part for part in networks if part is not None]

        def losses(sr: Tensor, hq: Tensor) -> Tensor:
            return torch.stack(list(self.objective.picture_losses(sr, hq, 1 << 60, range(len(sr))).values()) or [sr.mean()]).sum()

        need = memory_need(self.config, self.trainee, others, losses)
        if self._main:
            free = free_bytes(self.accelerator.device)
            log.info("memory: %s on `%s`, which has %.1f GB free", need, self.accelerator.device, free / 1e9)
            if need.network + need.decoder + need.optimiser > free:
                ways = "`--decode-chunk 1`, `--gradient-checkpointing`, or a smaller `--batch` with `--accumulate`"
                log.warning("this will hardly fit: think of %s", ways)

    # State -----------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """The adapter has its averaged weights for a while, where there is an average."""
        if self.average is None:
            yield
            return
        parameters = self.trainee.parameters
        self.average.store(parameters)
        self.average.copy_to(parameters)
        try:
            yield
        finally:
            self.average.restore(parameters)

    def state(self) -> dict[str, Any]:
        """All that changes while the run goes on, apart from the step; the data's place follows from the step."""
        state: dict[str, Any] = {
            "weights": [parameter.detach().cpu() for parameter in self.trainee.parameters],
            "optimiser": self.optimiser.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "drawn from": self._drawn_from,
            "base": self._base_sum,
            "rng": torch.get_rng_state(),
        }
        if torch.cuda.is_available():
            state["rng_cuda"] = torch.cuda.get_rng_state_all()
        if self.average is not None:
            state["average"] = self.average.state_dict()
        if self.critic is not None:
            state["critic"] = self.critic.state()
        if self.accelerator.scaler is not None:
            state["scaler"] = self.accelerator.scaler.state_dict()
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned.

        Raises:
            ModelError: the base is not what it was then.
        """
        if state.get("base", self._base_sum) != self._base_sum:
            message = "the checkpoint to go on from is of another network: its file is not what it was"
            raise ModelError(message, "put that file back, or give another `--output`")
        if [value.shape for value in state["weights"]] != [parameter.shape for parameter in self.trainee.parameters]:
            message = "the checkpoint to go on from is of an adapter of other layers: the base is not what it was"
            raise ModelError(message, "give another `--output`, and the old one as `--start-from`")
        of_old = self._drawn_from if len(self.crops.sources) == 1 else None  # older checkpoints drew from several otherwise
        if state.get("drawn from", of_old) != self._drawn_from and self._main:
            what = "photos, their LQ partners, their sources or their weights, or how they take turns,"
            log.warning("%s are not those that the run began with: it goes on, but not as it would have", what)
        with torch.no_grad():
            for parameter, value in zip(self.trainee.parameters, state["weights"], strict=True):
                parameter.copy_(value)
        self.optimiser.optimizer.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["rng"])
        if "rng_cuda" in state and len(state["rng_cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["rng_cuda"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
            self.average.to(self.accelerator.device)
        if self.critic is not None:
            self.critic.load(state["critic"])
        if self.accelerator.scaler is not None and "scaler" in state:
            self.accelerator.scaler.load_state_dict(state["scaler"])


def settings_of(config: TrainConfig, processes: int) -> dict[str, Any]:
    """What a run that goes on must share with the one that began; batches may be split otherwise.

    Raises:
        ModelError: an adapter that the run builds on is not there.
    """
    recipe, start = asdict(config.recipe), config.start_from
    split = recipe.pop("batch") * recipe.pop("accumulate") * processes
    if recipe["schedule"] == "constant":
        recipe.pop("steps")  # may be prolonged
    return {
        "stage": config.stage,
        "base": config.base_name,
        "seed": config.seed,
        "samples a step": split,
        **{name: sha256_of(find_adapter(path, name)) for name, path in config.adapters.items()},
        "start from": start and sha256_of(find_adapter(start, config.stage)),
        "told": dict(config.told),
        "captions": config.captions,
        **recipe,
    }


def _digest(sources: list[Source]) -> str:
    """All of the sources that decides what a sample is."""
    words = [f"{source.weight!r}\n" + "".join(f"{p.hq}\t{p.lq}\n" for p in source.photos) for source in sources]
    return hashlib.sha256("\n".join(words).encode(errors="surrogateescape")).hexdigest()


def make_accelerator(config: TrainConfig) -> Any:
    """Accelerate's view of device, processes and precision.

    Raises:
        UsageError: a device or precision that is not there, or processes that cannot be one run.
    """
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, patch_environment

    device, place = choose_device(config.device), find_place(os.environ)
    with patch_environment(**_variables(config, device, place)), meeting(place), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "OMP_NUM_THREADS")  # that each process has its share of the cores
        return Accelerator(
            cpu=device.type == "cpu",
            mixed_precision=_precision(config, device),
            gradient_accumulation_steps=config.recipe.accumulate,
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )


def _variables(config: TrainConfig, device: torch.device, place: Place | None) -> dict[str, str]:
    """What accelerate reads of the environment.

    Raises:
        UsageError: several processes are to share one device.
    """
    if place is None:
        named = {} if config.device in ("auto", "cpu") else {"ACCELERATE_TORCH_DEVICE": str(device)}
        return {"LOCAL_RANK": "-1", **named}  # one process needs no group, even if `torchrun` has started it
    if device.type == "mps" or ":" in config.device:
        hint = "use `--device cuda` or `--device cpu`, or start one process"
        raise UsageError(f"{place.processes} processes cannot share `{device}`", hint)
    return place.as_torchrun(torch.cuda.device_count())


@contextlib.contextmanager
def shared_state() -> Iterator[None]:
    """What accelerate and its processes share ends with this context, so that the same Python can train again."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    try:
        yield
    finally:
        if PartialState._shared_state:
            PartialState().destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


def _precision(config: TrainConfig, device: torch.device) -> str:
    """Accelerate's name of the mixed precision."""
    if config.dtype == "auto":
        return "bf16" if bf16_pays(device) else "no"
    if config.dtype == "fp16" and device.type == "cpu":
        raise UsageError("a CPU does not train in fp16", "use `--dtype bf16` or `--dtype fp32`")
    return {"fp32": "no", "fp16": "fp16", "bf16": "bf16"}[config.dtype]
