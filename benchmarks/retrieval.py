"""From plain cosine to our answers, image to image and text to image, on hard drawn pictures.

    python benchmarks/retrieval.py [--seeds 0 1 2 3 4] [--out runs/retrieval] [--difficulty 0.6]

Each seed draws a data set of its own in the challenge's layout. Findings vary independently of
the site's side and of all nuisance; a query has several right answers: pictures of the same class
with the same finding, and for a phrase all pictures that it fits. Answers are looked for in the
two test galleries, less what is a copy or of an examination of a training picture; whether they
are right is read from `truth.json`, which nothing else reads.
Class probabilities come from one network, trained on two thirds of the training pictures and
calibrated on the rest. Spaces are adapted on the training pictures with their descriptions.

Prints Recall@1 and MRR of plain cosine in the frozen joint encoder and of ours, with 95 %
intervals and paired tests; then what each step brings: left out, where it is on by default, and
added, where it is not. What takes long is kept in --out.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from entrep import finetune, heads, hybrid, metrics, prototypes
from entrep.artifacts import read_json
from entrep.config import RunConfig, load_config
from entrep.data import Challenge, find_challenge
from entrep.decode import cached_pixels
from entrep.embed import embed_pictures, embed_texts
from entrep.encoders import load_encoder, with_levels
from entrep.folds import assign_parts, duplicate_groups
from entrep.lessons import development_lessons
from entrep.matching import Matcher, ladder
from entrep.network import load_checkpoint, predict_logits, save_checkpoint
from entrep.phantom import ensure_dataset
from entrep.questions import (
    choose_for_phrases,
    choose_for_pictures,
    pairs_to_ask,
    parts_of,
    phrases_to_ask,
)
from entrep.ranking_metrics import first_right_rank
from entrep.retrieval import copies_of, ranked_names
from entrep.spaces import Space, embed_phrases, learn_spaces, read_phrases, says_by_cosine
from entrep.training import train_network

CPU = torch.device("cpu")
# What turns each step of the default off, and each that is off on.
WITHOUT: dict[str, dict[str, object]] = {
    "adapters": {"adapter_epochs": 0},
    "same class": {"same_class_weight": 0.0},
    "named class": {"named_class_weight": 0.0},
    "phrase probe": {"phrase_probe": False},
    "same finding": {"finding_weight": 0.0},
}
WITH: dict[str, dict[str, object]] = {
    "inverted softmax": {"hubness": "inverted_softmax"},
    "CSLS": {"hubness": "csls"},
    "k-reciprocal": {"k_reciprocal_weight": 0.3},
    "query expansion": {"expansion": 3},
    "phrase variants": {"phrase_variants": True},
    "no phrase split": {"split_phrases": False},  # a drawing shows one finding
}


@dataclass(frozen=True)
class Study:
    """One seed's pictures and what is known of them."""

    challenge: Challenge
    matcher: Matcher
    coarse: Matcher  # sees pictures at the joint encoder's own size only
    embed: Callable[[list[str]], np.ndarray]
    unseen: np.ndarray  # (N,) bool: no copy or picture of an examination that was learned from
    truth: dict


def main() -> None:
    """Run the seeds and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", type=Path, default=Path("runs/retrieval"))
    parser.add_argument("--difficulty", type=float, default=0.6, help="of the drawings, 0..1")
    parser.add_argument("--size", type=float, default=0.5, help="share of the real set's counts")
    options = parser.parse_args()
    studies = [prepare(seed, options) for seed in options.seeds]
    report(studies, load_config())


def prepare(seed: int, options: argparse.Namespace) -> Study:
    """Draw, embed, train and adapt."""
    config = load_config(seed=seed)
    folder = options.out / f"seed{seed}-d{options.difficulty}-s{options.size}"
    root = folder / "data"
    ensure_dataset(root, size=options.size, seed=seed, difficulty=options.difficulty)
    challenge = find_challenge(root)
    pictures = challenge.pictures
    groups = duplicate_groups(root, pictures)
    table = assign_parts(pictures, groups, folds=config.folds, holdout=0.0, seed=seed)
    fold = table["fold"].to_numpy()
    files = [root, pictures["path"].tolist()]
    shared = {"sha256": pictures["sha256"].tolist()}
    cache = folder / "cache"
    encoder = with_levels(load_encoder("demo-clip"))
    rows = embed_pictures(encoder, *files, cache=cache, **shared).matrix
    finer = with_levels(load_encoder(f"demo-clip@{2 * encoder.spec.image_size}"))
    rows = rows, (rows + embed_pictures(finer, *files, cache=cache, **shared).matrix) / 2

    def embed(texts: list[str]) -> np.ndarray:
        return embed_texts(encoder, texts, cache=cache).matrix

    lessons, known = development_lessons(pictures, fold, challenge.pairs, challenge.phrases)
    texts, prompts = embed_phrases(known, embed), prototypes.prompt_directions(embed)
    image_rows = embed_pictures(load_encoder("demo-dino"), *files, cache=cache, **shared).matrix
    prepared = cached_pixels(cache, *files, config.image_size, **shared)
    probs = class_probs(folder, prepared, pictures["class_index"].to_numpy(), fold, config)
    print(f"seed {seed}: {(fold >= 0).sum()} pictures, {len(known)} phrases known", flush=True)
    near = duplicate_groups(root, pictures, examinations=False)
    about = pictures["image_id"].to_numpy(), pictures["sha256"].to_numpy(), near, probs

    def learn(seen: np.ndarray) -> Matcher:
        joint = Space(seen, texts, prompts)
        spaces, says = learn_spaces(joint, Space(image_rows), lessons, fold, config)
        matcher = Matcher(*about, spaces, (0.5, 0.5), spaces[0], says, config)
        return choose(matcher, challenge, fold, embed)

    coarse, matcher = map(learn, rows)
    unseen = ~np.isin(groups, np.asarray(groups)[fold >= 0])
    return Study(challenge, matcher, coarse, embed, unseen, read_json(root / "truth.json"))


def choose(
    matcher: Matcher,
    challenge: Challenge,
    fold: np.ndarray,
    embed: Callable[[list[str]], np.ndarray],
) -> Matcher:
    """Shares and strengths by out-of-fold pairs and phrases, as notebook 05 chooses them."""
    train, parts = challenge.pictures[fold >= 0], parts_of(fold, fold >= 0)
    phrases, right = phrases_to_ask(train, challenge.phrases)
    asking = read_phrases(phrases, embed, split=matcher.config.split_phrases)
    matcher = choose_for_phrases(matcher, parts, asking, right)
    pairs = pairs_to_ask(train, challenge.pairs)
    matcher = choose_for_pictures(matcher, parts, *pairs, (0.5, 0.5))
    print(
        f"shares {matcher.weights}, strength {matcher.spaces[0].strength} for pictures and "
        f"{matcher.joint.strength} for phrases"
    )
    return matcher


def class_probs(
    folder: Path, prepared: np.ndarray, target: np.ndarray, fold: np.ndarray, config: RunConfig
) -> np.ndarray:
    """(N, 7) calibrated probabilities of one network that all but fold 0 trained."""
    path = folder / "network.safetensors"
    dev = fold >= 0
    if not path.is_file():
        options = finetune.options_of(config)
        network, _, _ = train_network(
            prepared[dev], target[dev], fold[dev] == 0, options=options, device=CPU,
            seed=config.seed, name="network", kept=folder / "network.pt",
        )  # fmt: skip
        save_checkpoint(path, network, dataclasses.asdict(options), "")
    probs = heads.to_probs(predict_logits(load_checkpoint(path, CPU), prepared))
    opinions = {
        "flat head": hybrid.split_classes(probs[:, heads.CLASSES]),
        "site and side heads": (probs[:, heads.SITES], probs[:, heads.BINARY]),
    }
    kept = fold == 0
    combiner = hybrid.fit_combiner(
        {name: (sites[kept], second[kept]) for name, (sites, second) in opinions.items()},
        target[kept],
    )
    return hybrid.combine(opinions, combiner).round(6)


def changed(matcher: Matcher, **changes: object) -> Matcher:
    """The matcher with other steps."""
    config = dataclasses.replace(matcher.config, **changes)
    matcher = dataclasses.replace(matcher, config=config)
    if not config.phrase_probe:
        matcher = dataclasses.replace(matcher, says=says_by_cosine(matcher.joint))
    if config.adapter_epochs:
        return matcher
    spaces = tuple(dataclasses.replace(space, adapters=()) for space in matcher.spaces)
    joint = dataclasses.replace(matcher.joint, adapters=())
    return dataclasses.replace(matcher, spaces=spaces, joint=joint)


def ranks_of(study: Study, matcher: Matcher) -> dict[str, np.ndarray]:
    """Rank of the first right answer of each query in both galleries, by kind of query."""
    config = matcher.config
    source, found = study.challenge.pictures["source"].to_numpy(), {"image": [], "text": []}
    for part in ("public", "private"):
        gallery = np.flatnonzero((source == part) & study.unseen)
        names = matcher.image_ids[gallery].tolist()
        row_of = dict(zip(names, gallery, strict=True))
        copies = copies_of(names, matcher.sha256[gallery].tolist())
        answers = study.truth["image_answers"][part].items()
        right = {q: {*shown} & {*names} - copies[q] for q, shown in answers if q in row_of}
        right = {query: shown for query, shown in right.items() if shown}
        queries = np.array([row_of[query] for query in right])
        ranking = matcher.answer_pictures(queries, gallery, k=len(gallery))
        found["image"].append(first_right_rank(ranked_names(ranking), list(right.values())))
        fits = {q: {*shown} & {*names} for q, shown in study.truth["text_answers"][part].items()}
        fits = {query: shown for query, shown in fits.items() if shown}
        reading = {"variants": config.phrase_variants, "split": config.split_phrases}
        phrases = read_phrases(list(fits), study.embed, **reading)
        ranking = matcher.answer_phrases(phrases, gallery, k=len(gallery))
        found["text"].append(first_right_rank(ranked_names(ranking), list(fits.values())))
    return {kind: np.concatenate(ranks) for kind, ranks in found.items()}


def report(studies: list[Study], config: RunConfig) -> None:
    """Print the tables and whether the targets are met."""

    def gathered(ranks: list[dict[str, np.ndarray]]) -> dict[str, list[np.ndarray]]:
        return {kind: [one[kind] for one in ranks] for kind in ("image", "text")}

    def measured(**changes: object) -> dict[str, list[np.ndarray]]:
        return gathered([ranks_of(study, changed(study.matcher, **changes)) for study in studies])

    plain = gathered([ranks_of(one, ladder(one.coarse)["plain cosine"]) for one in studies])
    single = gathered([ranks_of(study, study.coarse) for study in studies])
    ours = measured()
    phrases = [len(study.matcher.joint.texts) for study in studies]
    rng = np.random.default_rng(0)
    gains, tests = {}, {}
    print(f"\n{len(studies)} seeds, {min(phrases)} known phrases at least\n")
    print("| query | queries | R@1 plain | R@1 ours | gain (95 %) | MRR plain | ours | McNemar p |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for kind in ("image", "text"):
        a, b = (np.concatenate(ranks[kind]) for ranks in (ours, plain))
        rights = [(o == 1, p == 1) for o, p in zip(ours[kind], plain[kind], strict=True)]
        draws = [
            np.mean([_resampled(o.astype(float) - p, rng) for o, p in rights]) for _ in range(2000)
        ]
        low, high = np.quantile(draws, [0.025, 0.975])
        gains[kind] = (a == 1).mean() - (b == 1).mean()
        below = np.mean(np.array(draws) <= 0)
        tests[kind] = min(1.0, 2 * min(below, 1 - below))
        mcnemar = metrics.mcnemar_test(a == 1, b == 1)["p"]
        by_seed = ", ".join(f"{o.mean() - p.mean():+.3f}" for o, p in rights)
        print(
            f"| {kind} | {len(a)} | {(b == 1).mean():.3f} | {(a == 1).mean():.3f} "
            f"| {gains[kind]:+.3f} ({low:+.3f} to {high:+.3f}; seeds {by_seed}) "
            f"| {(1 / b).mean():.3f} | {(1 / a).mean():.3f} | {mcnemar:.2g} |"
        )
    print("\n| change of the default | image R@1 | MRR | text R@1 | MRR |\n|---|--:|--:|--:|--:|")
    earns = {}
    variants = {f"without {k}": v for k, v in WITHOUT.items()}
    variants |= {f"with {k}": v for k, v in WITH.items()}
    tables = {"without twice the size": single}
    for name, changes in variants.items():
        if any(getattr(config, key) != value for key, value in changes.items()):
            tables[name] = measured(**changes)
    for name, other in tables.items():
        cells = []
        for kind in ("image", "text"):
            a, b = np.concatenate(other[kind]), np.concatenate(ours[kind])
            cells += [f"{(a == 1).mean() - (b == 1).mean():+.3f}"]
            cells += [f"{(1 / a).mean() - (1 / b).mean():+.3f}"]
            if name.startswith("without"):
                earns.setdefault(name, []).append((1 / b).mean() - (1 / a).mean())
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    checks = {
        f"{kind}: Recall@1 at least 10 points above plain cosine ({gains[kind]:+.1%})": (
            gains[kind] >= 0.1
        )
        for kind in gains
    }
    checks |= {f"{k}: paired bootstrap p < 0.05 ({tests[k]:.2g})": tests[k] < 0.05 for k in tests}
    checks |= {f"{name}: MRR falls": max(change) > 0 for name, change in earns.items()}
    checks["at least 60 phrases"] = min(phrases) >= 60
    print()
    for target, met in checks.items():
        print(f"- {'met' if met else 'NOT MET'}: {target}")


def _resampled(values: np.ndarray, rng: np.random.Generator) -> float:
    return values[rng.integers(len(values), size=len(values))].mean()


if __name__ == "__main__":
    main()
