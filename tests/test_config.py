"""Profiles, overrides and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from entrep.config import (
    PROFILES,
    RunConfig,
    config_from,
    describe_config,
    load_config,
    need_pictures,
)


def test_the_demo_needs_nothing():
    assert load_config() == RunConfig()


@pytest.mark.parametrize("profile", [name for name in PROFILES if name != "demo"])
def test_a_profile_changes_its_own_fields_only(profile):
    config = dataclasses.asdict(load_config(profile, data_path="pictures"))
    plain = dataclasses.asdict(RunConfig())
    changed = {name: value for name, value in config.items() if value != plain[name]}
    expected = {"profile": profile, "data_path": "pictures", **PROFILES[profile]}
    assert changed.items() <= expected.items()
    assert all(config[name] == value for name, value in expected.items())


def test_an_override_beats_the_profile_and_none_keeps_it():
    config = load_config("mini", data_path="pictures", epochs=3, image_size=None)
    assert config.epochs == 3
    assert config.image_size == PROFILES["mini"]["image_size"]


def test_whole_numbers_and_paths_are_taken_where_they_are_meant():
    config = load_config(holdout=0, data_path=Path("a"))
    assert config.holdout == 0.0 and isinstance(config.holdout, float)
    assert config.data_path == "a"


@pytest.mark.parametrize(
    ("overrides", "gist"),
    [
        ({"profile": "turbo"}, "expected one of demo, mini, full; got 'turbo'"),
        ({"epocs": 3}, "epocs: there is no such parameter. Did you mean 'epochs'?"),
        ({"zzz": 3}, "zzz: there is no such parameter.$"),
        ({"epochs": "3"}, "epochs: expected int, got '3'"),
        ({"epochs": 3.0}, "epochs: expected int, got 3.0"),
        ({"epochs": True}, "epochs: expected int, got True"),
        ({"flip_swap": 1}, "flip_swap: expected bool, got 1"),
        ({"holdout": True}, "holdout: expected float, got True"),
        ({"epochs": 0}, "epochs: expected 1 to 1000, got 0"),
        ({"folds": 1}, "folds: expected 2 to 20, got 1"),
        ({"seed": -1}, "seed: expected 0 to"),
        ({"holdout": 0.9}, "holdout: expected 0.0 to 0.5, got 0.9"),
        ({"learning_rate": float("nan")}, "learning_rate: expected .*, got nan"),
        ({"split": "secret"}, "split: expected auto, public, private or test; got 'secret'"),
        ({"precision": "fp8"}, "precision: expected auto, fp32, fp16 or bf16; got 'fp8'"),
        ({"decision": "vote"}, "decision: expected combined or reference; got 'vote'"),
        ({"coverage": 1.0}, "coverage: expected 0.5 to 0.999, got 1.0"),
        ({"abstain_share": 0.9}, r"abstain_share: expected accept_share \(0.95\) or more, got 0.9"),
        ({"work_dir": ""}, "work_dir: give a folder"),
    ],
)
def test_a_wrong_parameter_is_refused_by_its_name(overrides, gist):
    with pytest.raises(ValueError, match=gist):
        load_config(**overrides)


def test_real_pictures_are_asked_for_where_they_are_read():
    with pytest.raises(ValueError, match="data_path: profile 'mini' works on real pictures"):
        need_pictures(load_config("mini"))
    need_pictures(load_config("mini", data_path="pictures"))
    need_pictures(load_config())


def test_a_notebooks_other_variables_are_not_parameters():
    config = config_from({"epochs": 2, "seed": None, "Path": Path, "_": 1})
    assert config == load_config(epochs=2)


def test_the_description_stars_what_is_not_the_default():
    lines = describe_config(load_config(epochs=2)).splitlines()
    assert [line for line in lines if line.startswith("*")] == ["* epochs                 = 2"]
    assert len(lines) == len(dataclasses.fields(RunConfig))
