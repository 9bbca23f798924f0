"""Are strangers noticed, is what remains answered as well, and do sets cover what they promise?

    python benchmarks/abstention.py --run DIR [--run DIR ...] [--each 60] [--seed 0]

Each DIR is a finished run (`entrep run --out DIR`), best with seeds of their own. Pictures that
show no ear, nose or throat (see `strangers.py`) are drawn and mixed with the run's own pictures
that nothing was fitted on, one in ten; scores and thresholds are those of notebook 04, learned
from the run's development pictures. Prints Markdown tables: how well each score and the joined one
tell strangers apart (AUROC by kind; seen plainly and through the phantoms' endoscope; 95 %
interval), what is accepted and how often it is right, and how often conformal sets hold the truth
over 20 random splits; then the targets.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import rankdata
from strangers import KINDS, write_strangers

from entrep import heads, hybrid, metrics, trust
from entrep.appearance import describe_pictures
from entrep.artifacts import load_arrays, read_json, read_table
from entrep.data import load_challenge
from entrep.embed import embed_pictures
from entrep.encoders import load_encoder
from entrep.labels import CLASS_NAMES, CLASS_TO_INDEX

MIXED_IN = 0.1  # share of strangers among the pictures to judge
ACCEPT, ABSTAIN = 0.95, 0.99  # notebook 04's accept_share and abstain_share
JOINED = "prototypes, k-NN + appearance"  # notebook 04's choice
COVERAGE, SPLITS, WITHIN = 0.9, 20, 0.02
DRAWS = 1000  # of the bootstrap


@dataclass(frozen=True)
class Judged:
    """One run's pictures, its strangers behind them, and what is known of all."""

    pictures: pd.DataFrame  # the run's P pictures; class_index of drawn test pictures filled in
    strangers: pd.DataFrame  # S of them
    scores: dict[str, np.ndarray]  # each (P + S,)
    everyone: np.ndarray  # (P, 7) of all experts
    alone: np.ndarray  # (P, 7) of the backbone's two

    @property
    def dev(self) -> np.ndarray:
        """The pictures that were learned from."""
        return (self.pictures["fold"] >= 0).to_numpy()

    @property
    def fate(self) -> np.ndarray:
        """(P + S,) what notebook 04 does with each: 0 answer, 1 doubt, 2 abstain."""
        score, rows = self.scores[JOINED], np.flatnonzero(self.dev)
        groups = self.pictures["group"].to_numpy()[rows]
        shares = (ACCEPT, ABSTAIN)
        limits = [trust.accept_threshold(score[rows], share, groups=groups) for share in shares]
        return trust.gate(score, *limits)

    @property
    def answers(self) -> np.ndarray:
        """(P, 7): of everyone, but of the backbone alone where it is doubted."""
        doubted = self.fate[: len(self.pictures), None] > 0
        return np.where(doubted, self.alone, self.everyone)


def main() -> None:
    """Judge the runs and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--run", type=Path, action="append", required=True, metavar="DIR")
    parser.add_argument("--each", type=int, default=60, help="strangers of each kind")
    parser.add_argument("--seed", type=int, default=0, help="of the strangers and the splits")
    options = parser.parse_args()
    judged = []
    for number, run in enumerate(options.run):
        with tempfile.TemporaryDirectory() as folder:
            judged.append(judge(run, Path(folder), options.each, options.seed + number))
    names = ", ".join(run.name for run in options.run)
    strangers = sum(len(one.strangers) for one in judged)
    print(f"\n{strangers} strangers against the new pictures of {names}; means over runs\n")
    low = print_detection(judged, options.seed)
    change, loss = print_decisions(judged, options.seed)
    coverages = print_coverage(judged, options.seed)
    checks = {
        "AUROC of the joined score at least 0.95, the interval's lower end too": low >= 0.95,
        "accuracy of the accepted, strangers among them, at least that of all real pictures": (
            change >= 0
        ),
        "the gate costs no accuracy on real pictures": loss >= 0,
        f"sets cover {COVERAGE:.0%} ± {WITHIN:.0%} in the mean of {SPLITS} splits, in every run": (
            all(abs(coverage - COVERAGE) <= WITHIN for coverage in coverages)
        ),
    }
    print()
    for target, met in checks.items():
        print(f"- {'met' if met else 'NOT MET'}: {target}")


def judge(run: Path, folder: Path, each: int, seed: int) -> Judged:
    """Score a run's pictures and `each` strangers of every kind, drawn into a folder."""
    config = read_json(run / "config.json")
    challenge = load_challenge(run / "01_eda")
    pictures = with_truth(challenge.pictures, challenge.root)
    strangers = write_strangers(folder, each, seed=seed)
    fold, target, group = (
        np.append(pictures[column], np.full(len(strangers), -1))
        for column in ("fold", "class_index", "group")
    )
    group[len(pictures) :] = -1 - np.arange(len(strangers))  # each for itself
    places = {challenge.root: pictures["path"].tolist(), folder: strangers["path"].tolist()}

    def embed(name: str) -> np.ndarray:
        encoder = load_encoder(name, device=config["device"], weights_dir=config["weights_dir"])
        found = [
            embed_pictures(encoder, root, paths, crop=config["crop"], progress=False).matrix
            for root, paths in places.items()
        ]
        return np.concatenate(found)

    spaces = {"prototypes": embed(config["prototype_encoder"])}
    if config["backbone"] != config["prototype_encoder"]:
        spaces["backbone"] = embed(config["backbone"])
    scores = {}
    for name, rows in spaces.items():
        scores[f"{name}, k-NN"] = trust.knn_scores(rows, fold, group)
        scores[f"{name}, Mahalanobis"] = trust.mahalanobis_scores(rows, target, fold)
    learned = load_arrays(run / "02_prototypes" / "prototypes.safetensors")[0]["prototypes"]
    temperature = read_json(run / "02_prototypes" / "metrics.json")["temperature"]
    scores["prototypes, energy"] = trust.energy_scores(
        spaces["prototypes"] @ learned.T, temperature
    )
    frames = np.concatenate([describe_pictures(root, paths) for root, paths in places.items()])
    scores["appearance"] = trust.mahalanobis_scores(frames, target, fold)
    pair = [scores["prototypes, k-NN"], scores["appearance"]]
    scores[JOINED] = trust.join_scores(pair, fold)
    if "backbone" in spaces:
        scores["the same + backbone, k-NN"] = trust.join_scores(
            [*pair, scores["backbone, k-NN"]], fold
        )
    farthest = np.max([trust.join_scores([score], fold) for score in pair], axis=0)
    scores["prototypes, k-NN or appearance: the larger"] = farthest
    return Judged(pictures, strangers, scores, *combine(run, pictures))


def with_truth(pictures: pd.DataFrame, root: Path) -> pd.DataFrame:
    """Classes of drawn test pictures too, where their key lies beside them."""
    if not (root / "truth.json").is_file():
        return pictures
    truth = read_json(root / "truth.json")["pictures"]
    known = [CLASS_TO_INDEX[truth[path]["class"]] for path in pictures["path"]]
    return pictures.assign(class_index=known)


def combine(run: Path, pictures: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """(P, 7) of all experts and (P, 7) of the backbone's two, as notebook 04 weighs them."""
    prototypes = read_table(run / "02_prototypes" / "predictions.csv")
    backbone = read_table(run / "03_dinov2_finetune" / "predictions.csv")
    probs = backbone[heads.PROB_COLUMNS].to_numpy()
    opinions = {
        "flat head": hybrid.split_classes(probs[:, heads.CLASSES]),
        "site and side heads": (probs[:, heads.SITES], probs[:, heads.BINARY]),
    }
    by_class = prototypes[[f"p_{name}" for name in CLASS_NAMES]].to_numpy()
    target, fold = pictures["class_index"].to_numpy(), pictures["fold"].to_numpy()
    alone, _ = hybrid.combine_out_of_fold(opinions, target, fold)
    opinions["prototypes"] = hybrid.split_classes(by_class)
    return hybrid.combine_out_of_fold(opinions, target, fold)[0].round(6), alone.round(6)


# ---------------------------------------------------------------- tables


def print_detection(judged: list[Judged], seed: int) -> float:
    """AUROC of each score; returns the lower end of the joined score's interval."""
    print(f"| score | {' | '.join(KINDS)} | plain | through the scope | all | 95 % interval |")
    print(f"|---|{'--:|' * (len(KINDS) + 4)}")
    joined_low = 0.0
    for name in judged[0].scores:
        cells = []
        for chosen in [*KINDS, False, True, None]:
            areas = []
            for one in judged:
                inside, outside = split_scores(one, one.scores[name])
                column = "kind" if isinstance(chosen, str) else "masked"
                rows = ... if chosen is None else (one.strangers[column] == chosen).to_numpy()
                areas.append(metrics.detection_scores(inside, outside[rows])["auroc"])
            cells.append(f"{statistics.mean(areas):.3f}")
        low, high = auroc_interval([(one, one.scores[name]) for one in judged], seed)
        joined_low = low if name == JOINED else joined_low
        print(f"| {name} | {' | '.join(cells)} | {low:.3f} to {high:.3f} |")
    return joined_low


def print_decisions(judged: list[Judged], seed: int) -> tuple[float, float]:
    """What is done with new pictures and strangers, one in ten; two differences of accuracy.

    The first: the accepted, strangers counted as wrong, less all real pictures. The second: all
    real pictures with the gate (the doubted are left to the backbone), less without it.
    """
    print(
        f"\n{MIXED_IN:.0%} strangers mixed in; accepted up to the {ACCEPT:.0%} threshold, "
        f"abstained beyond the {ABSTAIN:.0%} one\n"
    )
    print("| run | pictures | doubted: new | strangers | abstained: new | strangers ", end="")
    print("| right: all new | with the gate | the mixture | the accepted | difference, 95 % |")
    print(f"|---|{'--:|' * 10}")
    changes, losses = [], []
    for number, one in enumerate(judged):
        new = ~one.dev
        known = one.pictures["class_index"].to_numpy()[new]
        real, strange = split_scores(one, one.fate)
        plain = one.everyone[new].argmax(axis=1) == known
        gated = one.answers[new].argmax(axis=1) == known
        weight = MIXED_IN / (1 - MIXED_IN) * len(real) / len(strange)  # of a stranger
        mixture = plain.sum() / (len(real) + weight * len(strange))
        accepted = plain[real == 0].sum() / ((real == 0).sum() + weight * (strange == 0).sum())
        low, high = difference_interval(one, plain, real, weight * (strange == 0).sum(), seed)
        changes.append(accepted - plain.mean())
        losses.append(gated.mean() - plain.mean())
        shares = [(fates >= least).mean() for least in (1, 2) for fates in (real, strange)]
        shares += [plain.mean(), gated.mean(), mixture, accepted]
        cells = [str(number), str(len(real)), *(f"{share:.1%}" for share in shares)]
        cells += [f"{changes[-1]:+.1%}, {low:+.1%} to {high:+.1%}"]
        print(f"| {' | '.join(cells)} |")
    return statistics.mean(changes), statistics.mean(losses)


def print_coverage(judged: list[Judged], seed: int) -> list[float]:
    """Coverage of sets over splits of the development pictures; the mean of each run."""
    print(f"\nSets that shall hold the truth for {COVERAGE:.0%}: {SPLITS} random halves\n")
    print("| run | pictures | covered | sd of a split | lowest class | classes a set | empty |")
    print(f"|---|{'--:|' * 6}")
    means = []
    for number, one in enumerate(judged):
        rows = one.dev
        table = trust.coverage_over_splits(
            trust.set_scores(one.answers[rows]),
            one.pictures["class_index"].to_numpy()[rows],
            COVERAGE,
            groups=one.pictures["group"].to_numpy()[rows],
            splits=SPLITS,
            seed=seed,
        )
        mean = table.mean()
        means.append(float(mean["coverage"]))
        print(
            f"| {number} | {rows.sum()} | {mean['coverage']:.1%} | {table['coverage'].std():.1%} "
            f"| {mean['worst_class']:.1%} | {mean['size']:.2f} | {mean['empty']:.1%} |"
        )
    return means


# ---------------------------------------------------------------- pieces


def split_scores(one: Judged, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(P + S,) values to those of the new pictures, and of the strangers."""
    count = len(one.pictures)
    return score[:count][~one.dev], score[count:]


def resample_groups(one: Judged, rng: np.random.Generator) -> np.ndarray:
    """Rows of the new pictures, whole groups drawn with replacement."""
    groups = one.pictures["group"].to_numpy()[~one.dev]
    names, members = np.unique(groups, return_inverse=True)
    counts = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))
    return np.repeat(np.arange(len(groups)), counts[members])


def auroc_interval(scored: list[tuple[Judged, np.ndarray]], seed: int) -> tuple[float, float]:
    """95 % of the mean AUROC over runs; groups of new pictures and strangers are resampled."""
    rng = np.random.default_rng(seed)
    areas = np.empty((DRAWS, len(scored)))
    for column, (one, score) in enumerate(scored):
        inside, outside = split_scores(one, score)
        for draw in range(DRAWS):
            drawn = inside[resample_groups(one, rng)]
            others = outside[rng.integers(len(outside), size=len(outside))]
            ranks = rankdata(np.concatenate([others, drawn]))[: len(others)].sum()
            areas[draw, column] = (ranks / len(others) - (len(others) + 1) / 2) / len(drawn)
    low, high = np.quantile(areas.mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def difference_interval(
    one: Judged, right: np.ndarray, fate: np.ndarray, accepted_strangers: float, seed: int
) -> tuple[float, float]:
    """95 % of the accuracy of the accepted less that of all; groups are resampled."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(DRAWS):
        rows = resample_groups(one, rng)
        kept = rows[fate[rows] == 0]
        found.append(right[kept].sum() / (len(kept) + accepted_strangers) - right[rows].mean())
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


if __name__ == "__main__":
    main()
