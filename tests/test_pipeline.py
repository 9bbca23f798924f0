"""The table of notebooks, and what is refused before any of them runs."""

import pytest
from test_runner import SECOND, STEPS, write_notebook

from entrep.config import load_config
from entrep.pipeline import NOTEBOOKS, choose_parameters, parse_parameters, select_steps


def test_steps_are_selected_by_number_or_stem_in_running_order():
    assert [s.name for s in select_steps([], STEPS)] == [s.name for s in STEPS]
    assert [s.name for s in select_steps(["3", "01_first"], STEPS)] == ["01_first", "03_third"]
    with pytest.raises(ValueError, match="no notebook '4'; there are 01_first, 02_second"):
        select_steps(["4"], STEPS)


def test_upstream_steps_come_before_those_that_need_them():
    names = [step.name for step in NOTEBOOKS]
    for index, step in enumerate(NOTEBOOKS):
        assert set(step.upstream) <= set(names[:index])
    owned = [folder for step in NOTEBOOKS for folder in step.outputs]
    assert len(owned) == len(set(owned))


def test_parameters_get_the_type_of_their_field():
    texts = ["epochs=3", "learning_rate=1e-4", "flip_swap=No", "backbone=demo-dino", "x=1"]
    assert parse_parameters(texts) == {
        "epochs": 3,
        "learning_rate": 1e-4,
        "flip_swap": False,
        "backbone": "demo-dino",
        "x": "1",
    }


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        ("epochs=many", "epochs: expected int, got 'many'"),
        ("epochs=2.5", "epochs: expected int"),
        ("flip_tta=maybe", "flip_tta: expected true or false"),
        ("epochs", "expected name=value"),
        ("=3", "expected name=value"),
    ],
)
def test_a_parameter_of_the_wrong_form_is_refused(pair, words):
    with pytest.raises(ValueError, match=words):
        parse_parameters([pair])


def test_a_notebook_without_tagged_parameters_is_refused(tmp_path):
    write_notebook(tmp_path, "02_second", "", SECOND, tags=())
    with pytest.raises(ValueError, match="02_second.ipynb: its cell tagged 'parameters' lacks"):
        choose_parameters(load_config(), {}, STEPS[1:2], tmp_path, STEPS)
