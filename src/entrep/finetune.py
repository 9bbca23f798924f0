"""Fine-tuning of one backbone that answers every question: 7 classes, 4 sites, 3 binary ones."""

from __future__ import annotations

import json
import math
import pickle
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from timm.optim import param_groups_layer_decay
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from entrep.artifacts import atomic_path, read_table, sha256_json, write_table
from entrep.config import RunConfig
from entrep.encoders import feature_width, load_backbone, pooled_features
from entrep.labels import CLASS_NAMES, FINE_PAIRS, FINE_SITES, MIRROR_CLASS, SITE_NAMES, SITE_OF
from entrep.preprocess import as_batch, mirror, mirror_classes, normalise, training_augmentation
from entrep.registry import pack_digest

KEEP_EVERY_S = 30.0  # a killed training loses this much and an epoch

# Columns of the network's output: logits of the classes, of the sites, and of "the second
# class of the site's pair" (nose left, ear left, cords closed).
CLASSES = slice(0, len(CLASS_NAMES))
SITES = slice(CLASSES.stop, CLASSES.stop + len(SITE_NAMES))
BINARY = slice(SITES.stop, SITES.stop + len(FINE_SITES))

PROB_COLUMNS = (
    [f"p_{name}" for name in CLASS_NAMES]
    + [f"site_{name}" for name in SITE_NAMES]
    + [f"second_{name}" for name in FINE_SITES]
)


@dataclass(frozen=True)
class TrainingOptions:
    """What one fold's training depends on, beside the pictures and the seed."""

    backbone: str
    image_size: int
    epochs: int
    learning_rate: float
    layer_decay: float
    weight_decay: float
    batch_size: int
    label_smoothing: float
    patience: int  # 0: no early stopping, the last epoch counts
    flip_swap: bool
    crop: bool = True  # how the pictures were prepared
    weights_dir: str = ""


def options_of(config: RunConfig, *, patience: int | None = None) -> TrainingOptions:
    """The training part of a run's configuration; `patience` None takes the configuration's."""
    return TrainingOptions(
        backbone=config.backbone,
        image_size=config.image_size,
        epochs=config.epochs,
        learning_rate=config.learning_rate,
        layer_decay=config.layer_decay,
        weight_decay=config.weight_decay,
        batch_size=config.train_batch_size,
        label_smoothing=config.label_smoothing,
        patience=config.patience if patience is None else patience,
        flip_swap=config.flip_swap,
        crop=config.crop,
        weights_dir=config.weights_dir,
    )


class SharedNetwork(nn.Module):
    """One backbone and one linear layer for all heads: (B, 3, S, S) uint8 to (B, 14) logits.

    The normalisation is part of the network, so a checkpoint cannot meet another one's.
    """

    def __init__(
        self, backbone: nn.Module, mean: Sequence[float], std: Sequence[float], width: int
    ) -> None:
        """Put a fresh head on a backbone whose pooled features are `width` wide."""
        super().__init__()
        self.backbone = backbone
        self.mean, self.std = tuple(mean), tuple(std)
        self.head = nn.Linear(width, BINARY.stop)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, batch: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 to (B, 14) logits; see `CLASSES`, `SITES`, `BINARY`."""
        return self.head(pooled_features(self.backbone, normalise(batch, self.mean, self.std)))


def build_network(
    backbone: str, image_size: int, *, weights_dir: str = "", pretrained: bool = True
) -> SharedNetwork:
    """A `SharedNetwork` with a fresh head on a registered backbone."""
    model, mean, std = load_backbone(
        backbone, image_size=image_size, weights_dir=weights_dir, pretrained=pretrained
    )
    return SharedNetwork(model, mean, std, feature_width(model))


def mirror_logits(logits: Tensor) -> Tensor:
    """Logits of mirrored pictures, told as if the pictures were not: (B, 14) to (B, 14).

    Left and right change places among the classes; the binary logit of a lateral site
    changes its sign; sites and the cords' state stay.
    """
    lateral = [MIRROR_CLASS[FINE_PAIRS[site][0]] != FINE_PAIRS[site][0] for site in FINE_SITES]
    sign = torch.tensor([-1.0 if swap else 1.0 for swap in lateral], device=logits.device)
    classes = logits[:, CLASSES][:, list(MIRROR_CLASS)]
    return torch.cat([classes, logits[:, SITES], logits[:, BINARY] * sign], dim=1)


def class_weights(class_index: np.ndarray, beta: float = 0.99) -> np.ndarray:
    """Effective-number weights (Cui et al., arXiv 1901.05555, eq. 4), mean 1 over pictures.

    Returns:
        (7,) float32; 0 for a class without pictures.
    """
    counts = np.bincount(class_index, minlength=len(CLASS_NAMES))
    weights = np.where(counts > 0, (1 - beta) / (1 - beta ** np.maximum(counts, 1)), 0.0)
    return (weights * counts.sum() / (weights * counts).sum()).astype(np.float32)


def multi_task_loss(
    logits: Tensor, class_index: Tensor, weight: Tensor, *, label_smoothing: float = 0.0
) -> Tensor:
    """Mean over pictures of the three questions' losses, each picture weighted by its class.

    Args:
        logits: (B, 14).
        class_index: (B,) ints in 0..6.
        weight: (7,) weight of each class.
        label_smoothing: for the class and the site question.

    Returns:
        Scalar: cross-entropy of class and site, plus binary cross-entropy of the picture's
        own site where that has a binary question.
    """
    site = torch.tensor(SITE_OF, device=logits.device)[class_index]
    rows = functional.cross_entropy(
        logits[:, CLASSES], class_index, reduction="none", label_smoothing=label_smoothing
    )
    rows = rows + functional.cross_entropy(
        logits[:, SITES], site, reduction="none", label_smoothing=label_smoothing
    )
    for column, name in enumerate(FINE_SITES):
        first, second = FINE_PAIRS[name]
        asked = (class_index == first) | (class_index == second)
        binary = functional.binary_cross_entropy_with_logits(
            logits[:, BINARY][:, column], (class_index == second).float(), reduction="none"
        )
        rows = rows + binary * asked
    return (rows * weight[class_index]).sum() / weight[class_index].sum()


@torch.inference_mode()
def predict_logits(
    network: nn.Module, prepared: np.ndarray, *, batch_size: int = 32, flip_tta: bool = True
) -> np.ndarray:
    """Logits of prepared pictures: (N, S, S, 3) uint8 to (N, 14) float32.

    With `flip_tta` each picture is also seen mirrored, and the mirrored logits are turned
    back by `mirror_logits` before the two are averaged.
    """
    device = next(network.parameters()).device
    network.eval()
    rows = []
    for start in range(0, len(prepared), batch_size):
        batch = as_batch(prepared[start : start + batch_size]).to(device)
        logits = network(batch)
        if flip_tta:
            logits = (logits + mirror_logits(network(mirror(batch)))) / 2
        rows.append(logits.float().cpu())
    return torch.cat(rows).numpy() if rows else np.empty((0, BINARY.stop), np.float32)


def to_probs(logits: np.ndarray) -> np.ndarray:
    """(N, 14) logits to (N, 14) probabilities: softmax, softmax and sigmoids, by question."""
    table = torch.from_numpy(logits).double()
    parts = [table[:, CLASSES].softmax(1), table[:, SITES].softmax(1), table[:, BINARY].sigmoid()]
    return torch.cat(parts, dim=1).numpy()


def train_fold(
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
        device: where to train.
        seed: of the head's weights, the order and the augmentation.
        name: what the progress bar calls this training.
        kept: file that keeps the state between epochs, every `KEEP_EVERY_S` seconds; a
            training of the same `key` goes on from it. None keeps nothing.
        key: see `fold_key`.
        budget_s: seconds after which the training ends with what it has.

    Returns:
        (network with the averaged weights of the best epoch, or with `patience` 0 of the last
        one; history with one row an epoch: epoch, train_loss, validation_loss, best; whether
        the training came to its end, not to that of its budget).

    Raises:
        FloatingPointError: if the loss is not finite.
        RuntimeError: if the network gives every picture the same answer when it should not.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build_network(
            options.backbone, options.image_size, weights_dir=options.weights_dir
        ).to(device)
        training = _Training(network, options, class_index[~validation])
        if kept is not None and kept.is_file():
            training.load(kept, key)
        whole = _train(
            training,
            prepared,
            class_index,
            validation,
            name,
            kept,
            key,
            time.monotonic() + budget_s,
        )
    network.load_state_dict(training.best_state)
    table = pd.DataFrame(training.history)
    best = (table["epoch"] == training.best_epoch).astype(int)
    return network, table.assign(best=best), whole


class _Training:
    """All that changes in the course of a training, as it is kept between epochs."""

    def __init__(self, network: SharedNetwork, options: TrainingOptions, class_index: np.ndarray):
        self.network, self.options = network, options
        self.device = next(network.parameters()).device
        self.steps = -(-len(class_index) // options.batch_size)
        self.optimizer, self.scheduler = _optimisation(network, options, self.steps)
        # The average forgets within about two epochs, so that early stopping sees the present.
        self.average = ModelEmaV3(network, decay=max(0.5, 1 - 1 / (2 * self.steps)))
        self.weight = torch.from_numpy(class_weights(class_index)).to(self.device)
        self.history: list[dict[str, float]] = []
        self.best_loss, self.best_epoch = math.inf, 0
        self.best_state: dict[str, Tensor] = {}

    def save(self, file: Path, key: str) -> None:
        """Write the state, atomically."""
        state = {
            "key": key,
            "network": self.network.state_dict(),
            "average": self.average.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": torch.get_rng_state(),
            "history": self.history,
            "best": [self.best_loss, self.best_epoch, self.best_state],
        }
        with atomic_path(file) as temporary:
            torch.save(state, temporary)

    def load(self, file: Path, key: str) -> None:
        """Go on from a state of the same key; any other one is passed over."""
        try:
            state = torch.load(file, map_location=self.device, weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise ValueError(f"{file} is damaged ({error}); delete it and run again.") from error
        if state.get("key") != key:
            return
        self.network.load_state_dict(state["network"])
        self.average.module.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"].cpu())
        self.history = state["history"]
        self.best_loss, self.best_epoch, self.best_state = state["best"]


def _train(
    training: _Training,
    prepared: np.ndarray,
    class_index: np.ndarray,
    validation: np.ndarray,
    name: str,
    kept: Path | None,
    key: str,
    deadline: float,
) -> bool:
    """Train to the end, from wherever `training` stands; False if the deadline came first."""
    options, average = training.options, training.average
    rows = torch.from_numpy(np.flatnonzero(~validation))
    pictures, target = as_batch(prepared), torch.from_numpy(class_index)
    done, saved = len(training.history), time.monotonic()
    with tqdm(total=options.epochs, initial=done, desc=name, unit="epoch") as bar:
        for epoch in range(done, options.epochs):
            started = time.monotonic()
            train_loss = _train_epoch(training, epoch, rows, pictures, target, name)
            logits = predict_logits(average.module, prepared[validation], flip_tta=False)
            loss = multi_task_loss(
                torch.from_numpy(logits), target[validation], training.weight.cpu()
            ).item()
            _check_collapse(logits, class_index[validation], epoch, options.epochs, name)
            training.history.append(
                {"epoch": epoch, "train_loss": train_loss, "validation_loss": loss}
            )
            if loss < training.best_loss or not options.patience:
                training.best_loss, training.best_epoch = loss, epoch
                state = average.module.state_dict()
                training.best_state = {k: v.detach().clone() for k, v in state.items()}
            bar.update()
            bar.set_postfix(validation_loss=f"{loss:.3f}", best=f"{training.best_loss:.3f}")
            if options.patience and epoch - training.best_epoch >= options.patience:
                break
            now = time.monotonic()
            short = now + (now - started) > deadline and epoch + 1 < options.epochs
            if kept is not None and (short or now - saved > KEEP_EVERY_S):
                training.save(kept, key)
                saved = now
            if short:
                print(f"{name}: time is up after {epoch + 1} of {options.epochs} epochs.")
                return False
    return True


def _train_epoch(
    training: _Training, epoch: int, rows: Tensor, pictures: Tensor, target: Tensor, name: str
) -> float:
    """One pass over the pictures in `rows`; their mean loss."""
    options, network = training.options, training.network
    augment = training_augmentation()
    network.train()
    losses = []
    for step, chosen in enumerate(rows[torch.randperm(len(rows))].split(options.batch_size)):
        batch = torch.stack([augment(pictures[row]) for row in chosen])
        answers = target[chosen]
        if options.flip_swap:
            batch, answers = mirror_half(batch, answers)
        logits, answers = network(batch.to(training.device)), answers.to(training.device)
        loss = multi_task_loss(
            logits, answers, training.weight, label_smoothing=options.label_smoothing
        )
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"{name}: the loss is {loss.item()} in epoch {epoch}; "
                "lower learning_rate or look for broken pictures."
            )
        training.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        training.optimizer.step()
        training.average.update(network)
        training.scheduler.step_update(epoch * training.steps + step + 1)
        losses.append(loss.item())
    return float(np.mean(losses))


def _check_collapse(
    logits: np.ndarray, class_index: np.ndarray, epoch: int, epochs: int, name: str
) -> None:
    """Stop a training whose network gives all pictures one answer in its second half."""
    tried = epoch >= max(5, epochs // 2)
    differ = len(set(class_index.tolist())) > 2
    if tried and differ and np.ptp(to_probs(logits)[:, CLASSES], axis=0).max() < 0.01:
        raise RuntimeError(
            f"{name}: after {epoch + 1} epochs the network gives every picture the same answer; "
            "lower learning_rate, or look whether labels and pictures belong together."
        )


def mirror_half(batch: Tensor, class_index: Tensor) -> tuple[Tensor, Tensor]:
    """Mirror each picture of (B, 3, S, S) with probability one half, its class (B,) with it."""
    flipped = torch.rand(len(batch)) < 0.5
    pictures = torch.where(flipped[:, None, None, None], mirror(batch), batch)
    return pictures, torch.where(flipped, mirror_classes(class_index), class_index)


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


def cross_validate(
    folder: str | Path,
    prepared: np.ndarray,
    class_index: np.ndarray,
    fold: np.ndarray,
    sha256: Sequence[str],
    *,
    options: TrainingOptions,
    device: torch.device,
    seed: int,
    budget_s: float = math.inf,
) -> tuple[list[SharedNetwork], pd.DataFrame]:
    """Train one network a fold; a fold whose checkpoint in `folder` fits is loaded instead.

    Args:
        folder: where `fold<i>.safetensors` and `fold<i>.csv` (its history) are kept, and
            `fold<i>.pt` while it trains.
        prepared: (N, S, S, 3) uint8 of all pictures.
        class_index: (N,) ints; read for development pictures only.
        fold: (N,) ints, -1 for pictures outside development.
        sha256: N digests of the pictures' bytes, which the checkpoints' keys hold.
        options: see `TrainingOptions`.
        device: where to train.
        seed: fold i trains with seed + i.
        budget_s: seconds for all folds together, shared out evenly. A fold that runs out of
            it gives the weights it has; the next call goes on from there.

    Returns:
        (networks in fold order, histories with a column `fold`).
    """
    folder, rows = Path(folder), fold >= 0
    content = [f"{d}:{c}:{f}" for d, c, f in zip(sha256, class_index, fold, strict=True) if f >= 0]
    networks, histories = [], []
    start, count = time.monotonic(), int(fold.max()) + 1
    known = {f"fold{number}" for number in range(count)}
    for path in folder.glob("fold*"):
        if path.stem not in known:
            path.unlink()  # of an earlier run with more folds
    for number in range(count):
        checkpoint, table = folder / f"fold{number}.safetensors", folder / f"fold{number}.csv"
        key = fold_key(options, content, seed, number)
        if checkpoint_metadata(checkpoint).get("key") == key and table.is_file():
            network, history = load_checkpoint(checkpoint, device), read_table(table)
        else:
            kept = folder / f"fold{number}.pt"
            left = budget_s - (time.monotonic() - start)
            network, history, whole = train_fold(
                prepared[rows],
                class_index[rows],
                fold[rows] == number,
                options=options,
                device=device,
                seed=seed + number,
                name=f"fold {number}",
                kept=kept,
                key=key,
                budget_s=max(0.0, left) / (count - number),
            )
            if whole:
                write_table(table, history)
                save_checkpoint(checkpoint, network, options, key)
                kept.unlink(missing_ok=True)
        networks.append(network)
        histories.append(history.assign(fold=number))
    return networks, pd.concat(histories, ignore_index=True)


def predict_all(
    networks: Sequence[SharedNetwork],
    prepared: np.ndarray,
    fold: np.ndarray,
    *,
    batch_size: int = 32,
    flip_tta: bool = True,
) -> np.ndarray:
    """Probabilities of every picture, from networks that never saw it: (N, 14).

    Development pictures are judged by the network of the fold that left them out, all
    others (fold -1) by the mean of all networks' probabilities. Columns: `PROB_COLUMNS`.
    """
    probs = np.zeros((len(prepared), BINARY.stop))
    outside = fold < 0
    for number, network in enumerate(tqdm(networks, "predict", unit="network")):
        for rows, share in ((fold == number, 1.0), (outside, 1 / len(networks))):
            logits = predict_logits(
                network, prepared[rows], batch_size=batch_size, flip_tta=flip_tta
            )
            probs[rows] += share * to_probs(logits)
    return probs


def fold_key(options: TrainingOptions, sha256: Sequence[str], seed: int, fold: int) -> str:
    """Digest of everything that a fold's checkpoint depends on; an equal one need not retrain."""
    settings = {key: value for key, value in vars(options).items() if key != "weights_dir"}
    weights = pack_digest(options.backbone, options.weights_dir)
    return sha256_json([settings, weights, list(sha256), seed, fold, torch.__version__])


def save_checkpoint(
    path: str | Path, network: SharedNetwork, options: TrainingOptions, key: str
) -> None:
    """Save the weights as safetensors, atomically, with options, class order and key inside."""
    metadata = {
        "options": json.dumps(vars(options)),
        "class_names": json.dumps(CLASS_NAMES),
        "key": key,
    }
    state = {name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(state, temporary, metadata)


def checkpoint_metadata(path: str | Path) -> Mapping[str, str]:
    """Metadata of a checkpoint; empty if there is none, or if it is not whole."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (FileNotFoundError, SafetensorError):
        return {}


def load_checkpoint(path: str | Path, device: torch.device) -> SharedNetwork:
    """Rebuild a network from its checkpoint alone.

    Raises:
        ValueError: if the file is no checkpoint of ours, or of another class order.
    """
    metadata = checkpoint_metadata(path)
    if metadata.get("class_names") != json.dumps(CLASS_NAMES):
        raise ValueError(
            f"{path} is not a whole checkpoint of this kit with the official class order; "
            "delete it and run 03_dinov2_finetune again."
        )
    options = TrainingOptions(**json.loads(metadata["options"]))
    network = build_network(
        options.backbone, options.image_size, weights_dir=options.weights_dir, pretrained=False
    )
    network.load_state_dict(load_file(path))
    return network.to(device)
