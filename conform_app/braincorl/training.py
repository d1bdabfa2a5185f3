# SPDX-License-Identifier: Apache-2.0
"""Meta-training of the network: across many voxels, learn to regress from a context.

Three stages (Yu et al.  2025): synthetic voxels at one context size, the same at random context sizes,
measured voxels at random context sizes.  Loss: mean squared error of the query betas.  AdamW, learning rate
lowered on a plateau of the validation loss (voxels held out of the training participants), early stopping.

Everything random is a function of (seed, stage, epoch, step), so that a run that was killed goes on to the
same numbers, and several processes (torchrun, DDP) see the batches that one would.  After each epoch
``last.pt`` (to resume) and, when better, ``best.safetensors`` are written, each replaced whole.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed

from conform_app.braincorl.checkpoint import load_model, save_model
from conform_app.braincorl.model import BraInCoRL, ModelSizes, as_sizes
from conform_app.braincorl.participants import Participant, as_participants
from conform_app.braincorl.prior import Prior, fit_prior
from conform_app.braincorl.sampling import Batch, RealVoxels, SyntheticVoxels, split_voxels
from conform_app.devices import in_bfloat16, torch_device
from conform_app.errors import CannotCreateError, DataError, UsageError

DRAWS = ("even", "log")
SCHEDULES = ("plateau", "cosine")
PRECISIONS = ("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    Attributes
    ----------
    synthetic : bool
        Voxels drawn from the prior, or measured ones.
    context : tuple of int
        Smallest and largest context; one size per batch.
    queries, batch, steps, epochs : int
        Query images per voxel, voxels per batch (all processes together), batches per epoch, most epochs.
    lr, weight_decay, dropout : float
    patience : int
        Epochs without a better validation loss after which the stage ends.
    schedule : {"plateau", "cosine"}
        Learning rate: a tenth whenever the validation loss stays, or half a cosine over the whole stage,
        down to a hundredth.
    sizes : {"even", "log"}
        How context sizes are drawn: evenly, or evenly in their logarithm, which costs less.
    """

    synthetic: bool
    context: tuple[int, int]
    queries: int = 100
    batch: int = 64
    steps: int = 500
    epochs: int = 100
    lr: float = 1e-4
    weight_decay: float = 0.1
    dropout: float = 0.0
    patience: int = 5
    schedule: str = "plateau"
    sizes: str = "even"

    def __post_init__(self) -> None:
        for name, known in (("schedule", SCHEDULES), ("sizes", DRAWS)):
            if getattr(self, name) not in known:
                raise UsageError(
                    f"A stage has {name} {getattr(self, name)!r}.", f"Give {' or '.join(known)}."
                )

    def draw_size(self, rng: np.random.Generator) -> int:
        """Draw a context size.

        Parameters
        ----------
        rng : numpy.random.Generator

        Returns
        -------
        int
        """
        low, high = self.context
        if self.sizes == "log":
            return round(math.exp(rng.uniform(math.log(low), math.log(high))))
        return int(rng.integers(low, high + 1))

    def rate(self, epoch: int, step: int) -> float:
        """Share of ``lr`` at a step, by the cosine.

        Parameters
        ----------
        epoch, step : int
            Counted from 0.

        Returns
        -------
        float
            From 0.01 to 1.
        """
        return 0.01 + 0.495 * (
            1 + math.cos(math.pi * (epoch * self.steps + step) / (self.epochs * self.steps))
        )


@dataclass(frozen=True)
class TrainSettings:
    """Stages and what they share; the defaults are the published recipe where it is known.

    Attributes
    ----------
    stages : tuple of Stage
    validation_share : float
        Share of the training participants' voxels that validation is done on.
    validation_batches, warmup : int
        Warm-up counts steps, at the start of every stage.
    clip : float
        Largest norm of a gradient.
    seed : int
    precision : {"auto", "float32", "bfloat16"}
        Of the matrix products.  "auto": bfloat16 on a GPU that multiplies in it, float32 elsewhere; it also
        pays on a CPU that multiplies in it.
    """

    stages: tuple[Stage, ...] = (
        Stage(synthetic=True, context=(500, 500), lr=1e-3),
        Stage(synthetic=True, context=(30, 500)),
        Stage(synthetic=False, context=(30, 500), dropout=0.5),
    )
    validation_share: float = 0.1
    validation_batches: int = 8
    warmup: int = 100
    clip: float = 1.0
    seed: int = 0
    precision: str = "auto"

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UsageError(f"Precision {self.precision!r} is not known.", f"Give {', '.join(PRECISIONS)}.")


@dataclass(frozen=True)
class Trained:
    """A trained network and how it came about.

    Attributes
    ----------
    model : BraInCoRL
        That of the best validation loss of the last stage.
    card : dict
    history : list of dict
        Per epoch: stage, epoch, loss, validation loss, learning rate.
    """

    model: BraInCoRL = field(repr=False)
    card: dict[str, Any]
    history: list[dict[str, float]]


def init_processes(device: str) -> tuple[torch.device, int, int]:
    """Join the processes that torchrun started, if it did.

    Returns
    -------
    device : torch.device
        With several processes "cuda" is a GPU for each, in the order of torchrun's local ranks.
    rank, n_processes : int
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    place = torch_device(device)
    if several and place.type == "cuda" and place.index is None:
        place = torch_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
    if several and place.type == "cuda":
        torch.cuda.set_device(place)  # NCCL works on the current device
    if several and not distributed.is_initialized():
        distributed.init_process_group("nccl" if place.type == "cuda" else "gloo")
    if distributed.is_initialized():
        return place, distributed.get_rank(), distributed.get_world_size()
    return place, 0, 1


def train(
    source: Any,
    sizes: ModelSizes | str,
    folder: Path | str,
    *,
    settings: TrainSettings | None = None,
    prior: Prior | None = None,
    start: BraInCoRL | None = None,
    device: str = "cpu",
    progress: Callable[[dict[str, float]], None] | None = None,
) -> Trained:
    """Train a network on participants; goes on where an earlier call in ``folder`` was cut off.

    Parameters
    ----------
    source : participants
        Features and betas per participant (see `participants`).
    sizes : ModelSizes or str
    folder : path
        For checkpoints.
    settings : TrainSettings, optional
    prior : Prior, optional
        Of the synthetic voxels; default: fitted to the participants.
    start : BraInCoRL, optional
        Network to start from (fine-tuning).
    device : str
        "cpu", "cuda", or "auto": a GPU if there is one.  Processes of torchrun take a GPU each.
    progress : callable, optional
        Called with a row of the history after each epoch, by the first process.

    Returns
    -------
    Trained

    Raises
    ------
    CannotCreateError
        ``folder`` holds a training of other data or settings.
    UsageError
        No such device, or batches that do not divide by the number of processes.
    DataError
        Participants' features are of another length than the network reads.
    """
    settings = settings or TrainSettings()
    place, rank, n_processes = init_processes(device)
    people, folder, sizes = as_participants(source), Path(folder), as_sizes(sizes)
    if people[0].features.shape[1] != sizes.features:
        raise DataError(
            f"Participants have {people[0].features.shape[1]} features per image, the model reads "
            f"{sizes.features}.",
            "Give sizes with features= that number.",
        )
    if any(stage.batch % n_processes for stage in settings.stages):
        raise UsageError(f"Batches do not divide by {n_processes} processes.", "Change batch or processes.")
    run = _Run(people, sizes, folder, settings, prior, start, place, rank, n_processes, progress)
    return run.go()


class _Run:
    """State of one training; `go` runs it to its end."""

    def __init__(self, people, sizes, folder, settings, prior, start, device, rank, n_processes, progress):
        self.people, self.folder, self.settings, self.device = people, folder, settings, device
        self.rank, self.n_processes, self.progress, self.sizes = rank, n_processes, progress, sizes
        torch.manual_seed(settings.seed)
        self.model = BraInCoRL(sizes, dropout=settings.stages[0].dropout)
        if start is not None:
            self.model.load_state_dict(start.state_dict())
        self.model.to(device)
        self.beta_sd = float(np.median(np.concatenate([_spread(p, settings.seed) for p in people])))
        self.card = {
            "participants": [p.name for p in people],
            "n_voxels": [len(p.voxels) for p in people],
            "n_images": [len(p.features) for p in people],
            "beta_sd": self.beta_sd,
            "settings": asdict(settings),
            "data_digest": _digest(people),
        }
        identity = {
            **self.card,
            "sizes": asdict(sizes),
            "n_processes": n_processes,
            "prior": prior is not None,
        }
        if prior is not None:
            identity["prior"] = hashlib.sha256(
                prior.means.tobytes() + prior.covariances.tobytes()
            ).hexdigest()
        self.identity = json.dumps(identity, sort_keys=True)
        fitted = prior
        if fitted is None and any(stage.synthetic for stage in settings.stages):
            fitted = fit_prior(people, seed=settings.seed, max_voxels=2000, max_images=2000, left_out=False)
        learn, held = split_voxels(people, settings.validation_share, settings.seed)
        self.sources = {
            False: (RealVoxels(people, learn), RealVoxels(people, held)),
            True: (SyntheticVoxels(people, fitted, beta_sd=self.beta_sd),) * 2,
        }
        self.history: list[dict[str, float]] = []

    def go(self) -> Trained:
        self.folder.mkdir(parents=True, exist_ok=True)
        state = self._resume()
        for number, stage in enumerate(self.settings.stages):
            if state is not None and number < state["stage"]:
                continue
            self._stage(number, stage, state)
            state = None
        if self.n_processes > 1:
            distributed.barrier()
        best = load_model(self.folder / "best.safetensors", device=str(self.device))
        return Trained(best, best.card, self.history)

    def _stage(self, number: int, stage: Stage, state: dict[str, Any] | None) -> None:
        for module in self.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = stage.dropout
        optimiser = torch.optim.AdamW(self.model.parameters(), lr=stage.lr, weight_decay=stage.weight_decay)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimiser, factor=0.1, patience=5, threshold=1e-4, cooldown=2, min_lr=min(1e-5, stage.lr)
        )
        first, best, waited = 0, np.inf, 0
        if state is not None:
            optimiser.load_state_dict(state["optimiser"])
            plateau.load_state_dict(state["plateau"])
            first, best, waited = state["epoch"] + 1, state["best"], state["waited"]
        elif number > 0:
            self.model.load_state_dict(load_model(self.folder / "best.safetensors").state_dict())
        wrapped = self.model
        if self.n_processes > 1:
            wrapped = torch.nn.parallel.DistributedDataParallel(self.model)
        for epoch in range(first, stage.epochs):
            if waited >= stage.patience:
                break
            loss = self._epoch(wrapped, optimiser, number, stage, epoch)
            validation, r = self._validate(number, stage)
            if stage.schedule == "plateau":
                plateau.step(validation)
            waited = 0 if validation < best else waited + 1
            row = {"stage": number + 1, "epoch": epoch + 1, "loss": loss, "validation_loss": validation}
            self.history.append({**row, "validation_r": r, "lr": optimiser.param_groups[0]["lr"]})
            if self.rank == 0:
                if validation < best:
                    metrics = {"metrics": self.history[-1], "stages_done": number + 1}
                    save_model(self.model, self.folder / "best.safetensors", {**self.card, **metrics})
                best = min(best, validation)
                self._keep(number, epoch, best, waited, optimiser, plateau)
                if self.progress:
                    self.progress(self.history[-1])
            best = min(best, validation)
            if self.n_processes > 1:
                distributed.barrier()

    def _epoch(self, wrapped, optimiser, number: int, stage: Stage, epoch: int) -> float:
        wrapped.train()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for step in range(stage.steps):
            seeds = [self.settings.seed, number, epoch, step]
            rng = np.random.default_rng(seeds)
            size = stage.draw_size(rng)
            batch = self.sources[stage.synthetic][0].draw(rng, stage.batch, size, stage.queries)
            # Dropout: of its own seed, another in each process.
            torch.manual_seed(int(np.random.default_rng([*seeds, self.rank]).integers(2**31)))
            done = epoch * stage.steps + step + 1
            for group in optimiser.param_groups:
                if stage.schedule == "cosine":
                    group["lr"] = (
                        stage.lr * stage.rate(epoch, step) * min(1.0, done / max(self.settings.warmup, 1))
                    )
                elif done <= self.settings.warmup:
                    group["lr"] = stage.lr * done / self.settings.warmup
            optimiser.zero_grad(set_to_none=True)
            loss = self._loss(wrapped, self._share(batch))[0]
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
            optimiser.step()
            total += loss.detach()  # not read here, so that the next batch is drawn while a GPU works
        return self._mean(float(total) / stage.steps)

    @torch.no_grad()
    def _validate(self, number: int, stage: Stage) -> tuple[float, float]:
        """Loss and median correlation over fixed batches: the same voxels, images and sizes every epoch."""
        self.model.eval()
        losses, rs = [], []
        spaced = np.geomspace if stage.sizes == "log" else np.linspace
        sizes = spaced(*stage.context, self.settings.validation_batches).astype(int)
        for i, size in enumerate(sizes):
            rng = np.random.default_rng([self.settings.seed, 2**31, number, i])
            batch = self.sources[stage.synthetic][1].draw(rng, stage.batch, int(size), stage.queries)
            loss, predicted, target = self._loss(self.model, self._share(batch))
            losses.append(float(loss))
            a, b = (v.float() - v.float().mean(1, keepdim=True) for v in (predicted, target))
            rs.append(float(((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp_min(1e-12)).median()))
        return self._mean(float(np.mean(losses))), self._mean(float(np.mean(rs)))

    def _loss(self, model, tensors):
        x, y, queries, target = tensors
        half = in_bfloat16(self.settings.precision, self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            predicted, _ = model(x, y, queries)
        return torch.nn.functional.mse_loss(predicted.float(), target), predicted, target

    def _share(self, batch: Batch) -> list[torch.Tensor]:
        arrays = (batch.context_features, batch.context_betas, batch.query_features, batch.query_betas)
        return [torch.from_numpy(a[self.rank :: self.n_processes]).to(self.device) for a in arrays]

    def _mean(self, value: float) -> float:
        if self.n_processes == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64, device=self.device)
        distributed.all_reduce(tensor)
        return float(tensor) / self.n_processes

    def _keep(self, number, epoch, best, waited, optimiser, plateau) -> None:
        state = {
            "identity": self.identity,
            "stage": number,
            "epoch": epoch,
            "best": best,
            "waited": waited,
            "history": self.history,
            "model": self.model.state_dict(),
            "optimiser": optimiser.state_dict(),
            "plateau": {k: v for k, v in plateau.state_dict().items() if isinstance(v, int | float | list)},
        }
        part = self.folder / "last.pt.part"
        torch.save(state, part)
        part.replace(self.folder / "last.pt")

    def _resume(self) -> dict[str, Any] | None:
        path = self.folder / "last.pt"
        if not path.is_file():
            return None
        # On the CPU: loading moves what belongs on the device, and AdamW's counts are read there every step.
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["identity"] != self.identity:
            raise CannotCreateError(
                f"{self.folder} holds a training of other participants, sizes or settings.",
                "Name another folder.",
            )
        self.model.load_state_dict(state["model"])
        self.history = state["history"]
        return state


def _spread(person: Participant, seed: int) -> np.ndarray:
    return person.some(500, np.random.default_rng(seed)).std(axis=1)


def _digest(people: list[Participant]) -> str:
    """Checksum of names, features and a sample of the betas (all of them would be read to no end)."""
    digest = hashlib.sha256()
    for person in people:
        digest.update(f"{person.name} {len(person.voxels)}".encode())
        digest.update(np.ascontiguousarray(person.features).tobytes())
        digest.update(person.some(200, np.random.default_rng(0)).tobytes())
    return digest.hexdigest()
