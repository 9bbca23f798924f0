"""The command line: exit status, one-line errors, and an answer before the heavy imports."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest

import entrep
from entrep import cli
from entrep.registry import ENCODERS, weights_folder


def test_version_and_help_answer_without_loading_anything_heavy():
    code = (
        "import sys; from entrep import cli\n"
        "try: cli.main(['--version'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'pandas', 'papermill', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"entrep {entrep.__version__}", "[]"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "--profile", "dmeo"], "expected one of demo, mini, full"),
        (["run", "--data", "not/there"], "not/there: there is no such folder"),
        (["run", "-p", "epoch=3"], "epoch: there is no such parameter. Did you mean 'epochs'?"),
        (["run", "--only", "9"], "no notebook '9'"),
        (["check-data", "not/there"], "not"),
        (["check-submission", "x.json", "--track", "1", "--data", "not/there"], "not"),
        (["phantom", "new", "--size", "-1"], "size"),
        (["run", "-p", "text_encoder=biomedclip"], "entrep models fetch biomedclip --to"),
        (["models", "show", "biomdclip"], "Did you mean 'biomedclip'?"),
        (["models", "verify", "not/there"], "this folder is no pack"),
        (["models", "pack", "biomedclip", "--from", "not/there", "--to", "p"], "not/there"),
        (["models", "fetch", "demo-clip", "--to", "p"], "no repository on the hub"),
        (["index", "not/there", "--out", "i"], "there is no such folder"),
        (["search", "not/there", "--text", "a polyp"], "Make it: entrep index PICTURES --out"),
    ],
)
def test_a_wrong_argument_is_one_line_and_status_2(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("entrep: error: ")
    assert words in printed
    assert "Traceback" not in printed
    assert list(tmp_path.iterdir()) == []


def test_traceback_shows_where_an_error_arose(tmp_path):
    with pytest.raises(FileNotFoundError):
        cli.main(["check-data", str(tmp_path / "not there"), "--traceback"])


def raised_in(module: str, text: str) -> Exception:
    """The error that `text` raises when it stands in `module`."""
    try:
        exec(text, {"__name__": module})
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def test_only_an_error_of_ours_goes_without_its_traceback():
    assert cli._is_ours(raised_in("entrep.data", "raise ValueError('no pictures')"))
    assert not cli._is_ours(raised_in("numpy.linalg", "raise ValueError('singular')"))
    assert cli._is_ours(raised_in("shutil", "raise OSError(28, 'No space left on device')"))


def test_an_interrupt_says_how_to_go_on(monkeypatch, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("entrep.runner.run", interrupted)
    assert cli.main(["run"]) == 130
    assert "the same command goes on from here" in capsys.readouterr().err


def test_a_failed_notebook_is_status_1(monkeypatch, capsys):
    scope = {"__name__": "entrep.runner"}
    exec("def failed(*args, **options): raise RuntimeError('notebook 03 failed')", scope)
    monkeypatch.setattr("entrep.runner.run", scope["failed"])
    assert cli.main(["run"]) == 1
    assert "entrep: error: notebook 03 failed" in capsys.readouterr().err


def test_options_of_run_reach_the_runner(monkeypatch):
    seen = {}
    monkeypatch.setattr("entrep.runner.run", lambda profile, **rest: seen.update(rest, p=profile))
    arguments = ["run", "--profile", "mini", "--data", "d", "--out", "o", "--only", "03,04"]
    assert cli.main([*arguments, "-p", "epochs=2", "-p", "flip_tta=false", "--force"]) == 0
    assert seen == {
        "p": "mini",
        "data": "d",
        "out": "o",
        "only": ["03", "04"],
        "parameters": {"epochs": 2, "flip_tta": False},
        "force": True,
        "notebooks": None,
    }


def test_options_of_build_and_submit_reach_their_functions(monkeypatch, capsys):
    seen = {}
    monkeypatch.setattr("entrep.kaggle_build.build", lambda out, **rest: seen.update(rest, out=out))
    arguments = ["kaggle", "build", "--owner", "me", "--run", "r", "--data", "a/b", "--packs", "p"]
    arguments += ["--accelerator", "cpu", "--wheels", "w", "--out", "o", "-p", "epochs=2"]
    assert cli.main(arguments) == 0
    assert seen == {
        "out": "o",
        "owner": "me",
        "run_folder": "r",
        "data": "a/b",
        "packs": "p",
        "accelerator": "cpu",
        "wheels": "w",
        "parameters": {"epochs": 2},
    }
    monkeypatch.setattr("entrep.saved_run.unpack_run", lambda file, out: (file, out))
    monkeypatch.setattr("entrep.saved_run.submit_run", lambda folder, **rest: seen.update(f=folder))
    assert cli.main(["submit", "artifacts.bin", "--out", "o"]) == 0
    assert seen["f"] == ("artifacts.bin", "o")


def test_a_submission_with_problems_is_status_1(monkeypatch, capsys):
    challenge = SimpleNamespace()
    monkeypatch.setattr("entrep.data.find_challenge", lambda root: challenge)
    monkeypatch.setattr("entrep.submission.check_submission", lambda *a, **k: ["one key lacks"])
    arguments = ["check-submission", "s.json", "--track", "1", "--data", "d"]
    assert cli.main(arguments) == 1
    assert capsys.readouterr().out == "s.json: one key lacks\n"
    monkeypatch.setattr("entrep.submission.check_submission", lambda *a, **k: [])
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out == "s.json: valid for track 1\n"


def test_bad_data_end_a_run_with_one_error_and_nothing_written(tmp_path, capsys):
    data, out = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    (data / "cls.json").write_text('{"a.png": "nose-left"}')
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(["run", "--profile", "mini", "--data", str(data), "--out", str(out)]) == 2
    message = capsys.readouterr().err
    assert message.count("entrep: error:") == 1 and "no picture" in message
    assert "Traceback" not in message
    assert sorted(tmp_path.rglob("*")) == before


def test_models_lists_every_encoder_and_the_packs_at_hand(capsys):
    shipped = weights_folder()
    assert cli.main(["models", "list", "--packs", str(shipped)]) == 0
    printed = capsys.readouterr().out
    for name, spec in ENCODERS.items():
        assert name in printed and spec.licence in printed
    assert str(shipped / "demo-dino") in printed
    assert cli.main(["models", "show", "surgenet-dinov2-b"]) == 0
    assert "NOT for commercial use" in capsys.readouterr().out


def test_models_verify_checks_a_shipped_pack(capsys):
    assert cli.main(["models", "verify", str(weights_folder() / "demo-dino")]) == 0
    assert "all as packed" in capsys.readouterr().out


def test_phrases_on_real_pictures_are_answered_and_called_not_meaningful(
    real_sample, tmp_path, capsys
):
    index = str(tmp_path / "index")
    assert cli.main(["index", str(real_sample), "--out", index, "--device", "cpu"]) == 0
    capsys.readouterr()
    for phrase in ("Ear wax", "polyp in the left nasal cavity", "thủng màng nhĩ"):
        assert cli.main(["search", index, "--text", phrase, "-k", "3"]) == 0
        found = capsys.readouterr()
        assert len(found.out.splitlines()) == 3
        assert "only seen drawn pictures" in found.err and "not meaningful" in found.err


def test_own_pictures_are_indexed_and_searched(tmp_path, capsys):
    from entrep.phantom import draw_dataset

    draw_dataset(tmp_path / "drawn", size=0.02, seed=0)
    pictures = tmp_path / "drawn"
    index, page = str(tmp_path / "index"), tmp_path / "out.html"
    assert cli.main(["index", str(pictures), "--out", index, "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "by demo-clip" in printed and "only seen drawn pictures" in printed
    query = sorted(pictures.rglob("*.png"))[0]
    assert cli.main(["search", index, "--image", str(query), "--html", str(page)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and lines[0].split()[:2] == ["1", "1.0000"]
    assert page.read_text(encoding="utf-8").count("<li>") == 5
    assert cli.main(["search", index, "--text", "a normal ear drum", "-k", "2"]) == 0
    done = capsys.readouterr()
    assert len(done.out.splitlines()) == 2 and "not meaningful" in done.err
    assert cli.main(["search", index, "--text", "x" * 10_000_000]) == 2
    assert "10,000,000 characters, at most 2,000" in capsys.readouterr().err
    assert cli.main(["index", str(pictures), "--out", index, "--encoder", "demo-dino"]) == 2
    assert "was built with encoder demo-clip" in capsys.readouterr().err


def test_a_search_needs_one_query(capsys):
    for query in ([], ["--text", "a", "--image", "b"]):
        with pytest.raises(SystemExit):
            cli.main(["search", "index", *query])
