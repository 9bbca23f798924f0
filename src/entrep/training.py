"""Training of one network on one split: the engine behind every fold.

One code path for a CPU, a GPU and several of them: accelerate moves gradients and precision.
All that is random follows from the seed, the epoch and a picture's place in its order, not from
what ran before; so a training that was killed goes on to the same weights, and processes that
share each batch see the pictures that one alone would see.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_file
from timm.optim import param_groups_layer_decay
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from entrep.artifacts import atomic_path, read_json, read_table, write_json, write_table
from entrep.augment import draw_partners, mix_views, training_augmentation, training_view
from entrep.encoders import resolve_precision
from entrep.heads import (
    CLASSES,
    QUESTIONS,
    class_weights,
    mirror_logits,
    multi_task_loss,
    to_probs,
)
from entrep.labels import CLASS_NAMES, FINE_PAIRS, FINE_SITES
from entrep.network import (
    SharedNetwork,
    add_lora,
    build_network,
    load_checkpoint,
    merge_lora,
    predict_logits,
    save_checkpoint,
)
from entrep.preprocess import as_batch, mirror, mirror_classes
from entrep.probe import fit_heads, frozen_features

KEEP_EVERY_S = 30.0  # a killed training loses this much and an epoch


@dataclass(frozen=True)
class TrainingOptions:
    """What one training depends on, beside the pictures and the seed.

    The names are those of `RunConfig`, whose comments explain them.
    """

    backbone: str
    image_size: int
    epochs: int
    learning_rate: float
    layer_decay: float
    weight_decay: float
    train_batch_size: int
    label_smoothing: float
    patience: int
    flip_swap: bool
    mirror_pairs: bool = False
    crop: bool = True
    weights_dir: str = ""
    linear_probe: bool = True
    ema: bool = True
    focal_gamma: float = 0.0
    class_balance: str = "weights"
    augmentation: float = 1.0
    mix_share: float = 0.0
    drop_path: float = 0.0
    accumulate: int = 1
    clip_norm: float = 1.0
    lora_rank: int = 0
    gradient_checkpointing: bool = False
    train_precision: str = "auto"
    processes: int = 1
    questions: tuple[str, ...] = QUESTIONS
    start: str = ""  # a checkpoint whose weights, heads too, are where the training starts

    @property
    def in_pairs(self) -> bool:
        """Whether each view goes through the network together with its mirror image."""
        return self.flip_swap and self.mirror_pairs


def train_network(
    prepared: np.ndarray,
    class_index: np.ndarray,
    validation: np.ndarray,
    *,
    options: TrainingOptions,
    device: torch.device,
    seed: int,
    name: str = "fold",
    kept: Path | None = None,
    key: str = "",
    budget_s: float = math.inf,
) -> tuple[SharedNetwork, pd.DataFrame, bool]:
    """Train on the pictures outside `validation`, stop early on the loss of those inside.

    With the same seed, threads and machine the weights are the same to the last bit, also when
    the training was killed in between and went on from `kept`.

    Args:
        prepared: (N, S, S, 3) uint8 development pictures.
        class_index: (N,) ints in 0..6.
        validation: (N,) bool, True for the fold left out.
        options: see `TrainingOptions`.
        device: where to train; with `options.processes` above 1 its type alone counts.
        seed: of the head's weights, the order and the augmentation.
        name: what the progress bar calls this training.
        kept: file that keeps the state between epochs, every `KEEP_EVERY_S` seconds; a
            training of the same `key` goes on from it. None keeps nothing.
        key: of the state in `kept`; any text that says what the training depends on.
        budget_s: seconds after which the training ends with what it has.

    Returns:
        (network with the averaged weights of the best epoch, or with `patience` 0 of the last
        one; history with one row an epoch: epoch, train_loss, validation_loss, best; whether
        the training came to its end, not to that of its budget).

    Raises:
        FloatingPointError: if the loss is not finite.
        RuntimeError: if the network gives every picture the same answer when it should not,
            or a process of several fails.
        ValueError: if `kept` is damaged, or LoRA does not fit the backbone.
    """
    job = (prepared, class_index, validation)
    given = {"options": options, "seed": seed, "name": name, "key": key, "budget_s": budget_s}
    if options.processes > 1:
        return _train_in_processes(*job, device=device, kept=kept, **given)
    AcceleratorState._reset_state(reset_partial_state=True)  # another device may have been first
    return _train_here(*job, device=device, kept=kept, **given)


def _train_here(
    prepared: np.ndarray,
    class_index: np.ndarray,
    validation: np.ndarray,
    *,
    options: TrainingOptions,
    device: torch.device,
    seed: int,
    name: str,
    kept: Path | None,
    key: str,
    budget_s: float,
) -> tuple[SharedNetwork, pd.DataFrame, bool]:
    """`train_network` in this process, which may be one of several."""
    deadline = time.monotonic() + budget_s
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        training = _Training(prepared, class_index, validation, options, device, seed, name)
        if kept is not None and kept.is_file():
            training.load(kept, key)
        else:
            training.probe()
        whole = _train(training, kept, key, deadline)
    network = training.network
    network.load_state_dict(training.best_state)
    merge_lora(network)
    table = pd.DataFrame(training.history)
    best = (table["epoch"] == training.best_epoch).astype(int)
    return network, table.assign(best=best), whole


class _Training:
    """A network with its pictures, and all that changes in the course of its training."""

    def __init__(
        self,
        prepared: np.ndarray,
        class_index: np.ndarray,
        validation: np.ndarray,
        options: TrainingOptions,
        device: torch.device,
        seed: int,
        name: str,
    ) -> None:
        self.options, self.seed, self.name = options, seed, name
        self.prepared, self.class_index, self.validation = prepared, class_index, validation
        self.rows = _asked(class_index, options.questions) & ~validation
        self.accelerator = _accelerator(device, options)
        self.device = self.accelerator.device if self.accelerator.num_processes > 1 else device
        self.network = network = _network(options).to(self.device)
        self.steps = -(-int(self.rows.sum()) // options.train_batch_size)
        # The average forgets within about two epochs, so that early stopping sees the present.
        decay = max(0.5, 1 - 1 / (2 * self.steps)) if options.ema else 0.0
        self.average = ModelEmaV3(network, decay=decay)
        weighted = options.class_balance == "weights"
        weight = class_weights(class_index[self.rows]) if weighted else np.ones(len(CLASS_NAMES))
        self.weight = torch.from_numpy(weight).float().to(self.device)
        optimizer, self.scheduler = _optimisation(network, options, self.steps)
        self.model, self.optimizer = self.accelerator.prepare(network, optimizer)
        self.history: list[dict[str, float]] = []
        self.best_loss, self.best_epoch = math.inf, 0
        self.best_state: dict[str, Tensor] = {}

    def probe(self) -> None:
        """Fit the heads alone first, so that the backbone is not bent towards random ones.

        "LP-FT", Kumar et al., arXiv 2202.10054. Heads of a checkpoint are not random.
        """
        if not self.options.linear_probe or self.options.start:
            return
        options, pictures = self.options, as_batch(self.prepared[self.rows])
        target = self.class_index[self.rows]
        views = [pictures, mirror(pictures)] if options.flip_swap else [pictures]
        features = [frozen_features(self.network, view, options.train_batch_size) for view in views]
        if options.flip_swap:
            turned = mirror_classes(torch.from_numpy(target)).numpy()
            target = np.concatenate([target, turned])
        fit_heads(self.network.head, np.concatenate(features), target, self.weight.cpu().numpy())
        self.average.set(self.network)

    def save(self, file: Path, key: str) -> None:
        """Write the state, atomically."""
        state = {
            "key": key,
            "network": self.network.state_dict(),
            "average": self.average.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": self.history,
            "best": [self.best_loss, self.best_epoch, self.best_state],
        }
        if self.accelerator.scaler is not None:
            state["scaler"] = self.accelerator.scaler.state_dict()
        with atomic_path(file) as temporary:
            torch.save(state, temporary)

    def load(self, file: Path, key: str) -> None:
        """Go on from a state of the same key; any other one is passed over."""
        try:
            state = torch.load(file, map_location=self.device, weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise ValueError(f"{file} is damaged ({error}); delete it and run again.") from error
        if state.get("key") != key:
            self.probe()
            return
        self.network.load_state_dict(state["network"])
        self.average.module.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        if "scaler" in state:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.history = state["history"]
        self.best_loss, self.best_epoch, self.best_state = state["best"]


def _asked(class_index: np.ndarray, questions: tuple[str, ...]) -> np.ndarray:
    """(N,) bool: pictures of which at least one question can be asked."""
    if {"classes", "sites"} & set(questions):
        return np.ones(len(class_index), bool)
    pairs = [index for site in FINE_SITES if site in questions for index in FINE_PAIRS[site]]
    return np.isin(class_index, pairs)


def _accelerator(device: torch.device, options: TrainingOptions) -> Accelerator:
    dtype = resolve_precision(options.train_precision, device)
    names = {torch.float32: "no", torch.float16: "fp16", torch.bfloat16: "bf16"}
    return Accelerator(
        cpu=device.type == "cpu", mixed_precision=names[dtype], device_placement=False
    )


def _network(options: TrainingOptions) -> SharedNetwork:
    network = build_network(
        options.backbone,
        options.image_size,
        weights_dir=options.weights_dir,
        drop_path=options.drop_path,
    )
    if options.start:
        network.load_state_dict(load_file(options.start))
    if options.lora_rank:
        add_lora(network, options.lora_rank)
    if options.gradient_checkpointing:
        network.backbone.set_grad_checkpointing(True)
    return network


def _optimisation(
    network: SharedNetwork, options: TrainingOptions, steps: int
) -> tuple[torch.optim.Optimizer, CosineLRScheduler]:
    groups = param_groups_layer_decay(
        network.backbone, weight_decay=options.weight_decay, layer_decay=options.layer_decay
    )
    groups.append({"params": list(network.head.parameters()), "lr_scale": 1.0})
    optimizer = torch.optim.AdamW(
        groups, lr=options.learning_rate, weight_decay=options.weight_decay
    )
    scheduler = CosineLRScheduler(
        optimizer,
        t_initial=options.epochs * steps,
        lr_min=options.learning_rate / 100,
        warmup_t=steps,
        warmup_lr_init=options.learning_rate / 100,
        warmup_prefix=False,
        t_in_epochs=False,
    )
    return optimizer, scheduler


def _train(training: _Training, kept: Path | None, key: str, deadline: float) -> bool:
    """Train to the end, from wherever `training` stands; False if the deadline came first."""
    options, main = training.options, training.accelerator.is_main_process
    done, saved = len(training.history), time.monotonic()
    bar = tqdm(
        total=options.epochs, initial=done, desc=training.name, unit="epoch", disable=not main
    )
    with bar:
        for epoch in range(done, options.epochs):
            started = time.monotonic()
            train_loss = _train_epoch(training, epoch)
            loss = _validation_loss(training, epoch)
            now = time.monotonic()
            short = now + (now - started) > deadline and epoch + 1 < options.epochs
            loss, short = broadcast_object_list([loss, short])  # all stop, or none
            training.history.append(
                {"epoch": epoch, "train_loss": train_loss, "validation_loss": loss}
            )
            if loss < training.best_loss or not options.patience:
                training.best_loss, training.best_epoch = loss, epoch
                state = training.average.module.state_dict()
                training.best_state = {k: v.detach().clone() for k, v in state.items()}
            bar.update()
            bar.set_postfix(validation_loss=f"{loss:.3f}", best=f"{training.best_loss:.3f}")
            if options.patience and epoch - training.best_epoch >= options.patience:
                break
            if main and kept is not None and (short or now - saved > KEEP_EVERY_S):
                training.save(kept, key)
                saved = now
            if short:
                epochs = f"{epoch + 1} of {options.epochs} epochs"
                training.accelerator.print(f"{training.name}: time is up after {epochs}.")
                return False
    return True


def _train_epoch(training: _Training, epoch: int) -> float:
    """One pass over the training pictures; their mean loss."""
    options, accelerator, losses = training.options, training.accelerator, []
    training.network.train()
    numbers = np.random.SeedSequence([training.seed, epoch]).generate_state(2)
    plan = torch.Generator().manual_seed(int(numbers[0]))
    torch.manual_seed(int(numbers[1]) + accelerator.process_index)  # of skipped blocks
    for step, chosen in enumerate(_order(training, plan).split(options.train_batch_size)):
        loss = torch.zeros((), device=training.device)
        target = torch.from_numpy(training.class_index)[chosen]
        total = training.weight.cpu()[target].sum().item()
        *early, last = _parts(training, chosen, plan)
        for pictures, answers in early:
            with accelerator.no_sync(training.model):
                loss += _backward(training, pictures, answers, total)
        loss += _backward(training, *last, total)
        loss = accelerator.reduce(loss)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"{training.name}: the loss is {loss.item()} in epoch {epoch}; "
                "lower learning_rate or look for broken pictures."
            )
        if options.clip_norm:
            accelerator.clip_grad_norm_(training.network.parameters(), options.clip_norm)
        training.optimizer.step()
        training.optimizer.zero_grad()
        training.average.update(training.network)
        training.scheduler.step_update(epoch * training.steps + step + 1)
        losses.append(loss.item())
    return float(np.mean(losses))


def _order(training: _Training, plan: torch.Generator) -> Tensor:
    """Rows of the training pictures in the order of an epoch."""
    rows = torch.from_numpy(np.flatnonzero(training.rows))
    if training.options.class_balance != "sampler":
        return rows[torch.randperm(len(rows), generator=plan)]
    target = training.class_index[training.rows]
    share = torch.from_numpy(1 / np.bincount(target)[target])
    return rows[share.multinomial(len(rows), replacement=True, generator=plan)]


def _parts(
    training: _Training, chosen: Tensor, plan: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Those parts of a batch that this process works on: (pictures, targets) of each.

    The plan is drawn for the whole batch, by all processes alike; views are made for those
    pictures only that are needed here.
    """
    options, accelerator = training.options, training.accelerator
    seeds = torch.randint(2**31, (len(chosen),), generator=plan)
    flipped = 0.5 if options.flip_swap and not options.in_pairs else 0.0
    flips = torch.rand(len(chosen), generator=plan) < flipped
    target = torch.from_numpy(training.class_index)[chosen]
    target = torch.where(flips, mirror_classes(target), target)
    partner, weight = draw_partners(target, options.mix_share, plan)
    parts = torch.arange(len(chosen)).chunk(options.accumulate * accelerator.num_processes)
    rounds = max(1, len(parts) // accelerator.num_processes)  # each has as many to do
    mine = parts[accelerator.process_index :: accelerator.num_processes][:rounds]
    pictures = as_batch(training.prepared)
    augment = training_augmentation(options.augmentation)
    views = torch.zeros(len(chosen), *pictures.shape[1:], dtype=torch.uint8)
    for place in {*torch.cat(mine).tolist(), *partner[torch.cat(mine)].tolist()}:
        picture, mirrored = pictures[chosen[place]], bool(flips[place])
        views[place] = training_view(picture, augment, seed=int(seeds[place]), mirrored=mirrored)
    mixed, answers = mix_views(views, target, partner, weight, generator=plan)
    for part in mine:
        yield mixed[part], answers[part]


def _backward(training: _Training, pictures: Tensor, answers: Tensor, total: float) -> Tensor:
    """Add the gradients of a part of a batch whose weights sum to `total`; the part's loss."""
    options, accelerator = training.options, training.accelerator
    pictures = pictures.to(training.device)
    with accelerator.autocast():
        if options.in_pairs:
            own, other = training.model(torch.cat([pictures, mirror(pictures)])).chunk(2)
            logits = (own + mirror_logits(other)) / 2
        else:
            logits = training.model(pictures)
    loss = multi_task_loss(
        logits.float(),
        answers.to(training.device),
        training.weight,
        label_smoothing=options.label_smoothing,
        focal_gamma=options.focal_gamma,
        questions=options.questions,
    )
    # Processes' gradients are averaged, and theirs is a sum.
    accelerator.backward(loss * (accelerator.num_processes / total))
    return loss.detach() / total


def _validation_loss(training: _Training, epoch: int) -> float:
    """Loss of the averaged network on the fold left out; stops a collapsed training."""
    options = training.options
    rows = _asked(training.class_index, options.questions) & training.validation
    flip_tta = options.in_pairs  # asked as it is trained
    logits = predict_logits(training.average.module, training.prepared[rows], flip_tta=flip_tta)
    target = training.class_index[rows]
    if "classes" in options.questions:
        check_collapse(logits, target, epoch, options.epochs, training.name)
    answers = functional.one_hot(torch.from_numpy(target), len(CLASS_NAMES)).float()
    weight = training.weight.cpu()
    loss = multi_task_loss(torch.from_numpy(logits), answers, weight, questions=options.questions)
    return (loss / weight[target].sum().clamp(min=1e-9)).item()


def check_collapse(
    logits: np.ndarray, class_index: np.ndarray, epoch: int, epochs: int, name: str
) -> None:
    """Stop a training whose network gives all pictures one answer in its second half.

    Raises:
        RuntimeError: if it does, though the (N, 14) logits are of more than two classes.
    """
    tried = epoch >= max(5, epochs // 2)
    differ = len(set(class_index.tolist())) > 2
    if tried and differ and np.ptp(to_probs(logits)[:, CLASSES], axis=0).max() < 0.01:
        raise RuntimeError(
            f"{name}: after {epoch + 1} epochs the network gives every picture the same answer; "
            "lower learning_rate, or look whether labels and pictures belong together."
        )


# ---------------------------------------------------------------- several processes


def _train_in_processes(
    prepared: np.ndarray,
    class_index: np.ndarray,
    validation: np.ndarray,
    *,
    device: torch.device,
    kept: Path | None,
    options: TrainingOptions,
    **given: object,
) -> tuple[SharedNetwork, pd.DataFrame, bool]:
    """`train_network` by `options.processes` processes, which share each batch.

    They are started as programs of their own: a notebook's kernel can neither be forked once it
    has used a GPU, nor pickled.
    """
    with tempfile.TemporaryDirectory() as folder:
        job = Path(folder)
        for name, array in zip(_ARRAYS, (prepared, class_index, validation), strict=True):
            np.save(job / f"{name}.npy", array)
        budget = given.pop("budget_s")
        write_json(
            job / "job.json",
            {
                "options": dataclasses.asdict(options),
                "device": device.type,
                "kept": str(kept.absolute()) if kept else "",
                "budget_s": None if math.isinf(budget) else budget,
                **given,
            },
        )
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={options.processes}", "-m", "entrep.training", folder]
        sources = str(Path(__file__).resolve().parents[1])
        paths = os.pathsep.join(filter(None, [sources, os.environ.get("PYTHONPATH")]))
        done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, check=False)
        if done.returncode:
            raise RuntimeError(
                f"{given['name']}: one of {options.processes} training processes failed (exit "
                f"code {done.returncode}); its message stands above. processes=1 needs none."
            )
        network = load_checkpoint(job / "network.safetensors", device)
        whole = read_json(job / "result.json")["whole"]
        return network, read_table(job / "history.csv"), whole


_ARRAYS = ("prepared", "class_index", "validation")


def _work(folder: str) -> None:
    """One of several processes: train, and leave the result beside the job."""
    job = Path(folder)
    given = read_json(job / "job.json")
    options = TrainingOptions(
        **{**given["options"], "questions": tuple(given["options"]["questions"])}
    )
    arrays = [np.load(job / f"{name}.npy", mmap_mode="c") for name in _ARRAYS]
    network, history, whole = _train_here(
        *arrays,
        options=options,
        device=torch.device(given["device"]),
        seed=given["seed"],
        name=given["name"],
        kept=Path(given["kept"]) if given["kept"] else None,
        key=given["key"],
        budget_s=math.inf if given["budget_s"] is None else given["budget_s"],
    )
    if int(os.environ["RANK"]) == 0:
        save_checkpoint(job / "network.safetensors", network, dataclasses.asdict(options), "")
        write_table(job / "history.csv", history)
        write_json(job / "result.json", {"whole": whole})
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    _work(sys.argv[1])
