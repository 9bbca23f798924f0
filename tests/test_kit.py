"""kit.py: the environment is made once, repaired when cut off, and nobody else's is touched."""

from __future__ import annotations

import ast
import importlib.util
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from packaging.requirements import Requirement

CHECKOUT = Path(__file__).resolve().parents[1]
KIT = CHECKOUT / "kit.py"


@pytest.fixture
def kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A fresh kit module whose checkout is a temporary folder and that installs nothing."""
    spec = importlib.util.spec_from_file_location("kit_under_test", KIT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    root = tmp_path / "checkout"
    root.mkdir()
    (root / "requirements.txt").write_text("torch==1\n")
    (root / "pyproject.toml").write_text("[project]\n")
    module.installs = []
    monkeypatch.setattr(module, "ROOT", root)
    monkeypatch.setattr(module, "install_packages", lambda *paths: module.installs.append(paths))
    return module


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    return tmp_path / "environments" / "kit"


def test_the_first_call_installs_and_the_second_does_not(kit, venv):
    python = kit.install(venv)
    assert kit.python_version(python) == sys.version
    assert kit.install(venv) == python
    assert len(kit.installs) == 1


def test_changed_requirements_are_installed_into_the_same_environment(kit, venv):
    kit.install(venv)
    (venv / "kept").touch()
    (kit.ROOT / "requirements.txt").write_text("torch==2\n")
    kit.install(venv)
    assert len(kit.installs) == 2
    assert (venv / "kept").exists()


def test_an_install_that_was_cut_off_is_made_anew(kit, venv, monkeypatch):
    def cut_off(*paths):
        (venv / "half").touch()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(kit, "install_packages", cut_off)
        with pytest.raises(KeyboardInterrupt):
            kit.install(venv)
    kit.install(venv)
    assert not (venv / "half").exists()
    assert len(kit.installs) == 1


def test_an_environment_without_a_working_python_is_made_anew(kit, venv):
    python = kit.install(venv)
    python.unlink()
    assert kit.python_version(kit.install(venv)) == sys.version
    assert len(kit.installs) == 2


def test_an_environment_of_another_python_is_made_anew(kit, venv, monkeypatch):
    kit.install(venv)
    (venv / "old").touch()
    monkeypatch.setattr(kit, "python_version", lambda python: "3.11.0 (another build)")
    monkeypatch.setattr(kit, "stamp", lambda: "another stamp\n")
    kit.install(venv)
    assert not (venv / "old").exists()


def test_a_folder_that_is_no_environment_is_left_alone(kit, venv):
    venv.mkdir(parents=True)
    (venv / "thesis.tex").write_text("x")
    with pytest.raises(kit.StepFailed, match="is no virtual environment.*Set ENTREP_VENV"):
        kit.install(venv)
    assert [path.name for path in venv.iterdir()] == ["thesis.tex"]


def test_a_users_own_environment_is_used_and_never_cleared(kit, venv, monkeypatch):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    (venv / "own").touch()
    with monkeypatch.context() as patch:
        patch.setattr(kit, "install_packages", lambda *paths: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            kit.install(venv)
    kit.install(venv)
    assert len(kit.installs) == 1
    monkeypatch.setattr(kit, "python_version", lambda python: "3.10.2 (another)")
    monkeypatch.setattr(kit, "stamp", lambda: "another stamp\n")
    with pytest.raises(kit.StepFailed, match="is for Python 3.10.2 and was not made by kit.py"):
        kit.install(venv)
    assert (venv / "own").exists()


def test_a_place_that_cannot_be_written_is_named(kit, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(kit.StepFailed, match="cannot write to .*Set ENTREP_VENV"):
        kit.install(tmp_path / "file" / "venv")


def test_only_one_kit_installs_at_a_time(kit, venv):
    with kit.only_one(venv), open(venv.with_name("kit.lock"), "a+b") as second:
        assert not kit.try_lock(second)
    with open(venv.with_name("kit.lock"), "a+b") as second:
        assert kit.try_lock(second)


@pytest.mark.parametrize("uv", [None, "/usr/bin/uv"])
def test_uv_installs_where_it_is_there_else_pip(tmp_path, monkeypatch, uv):
    spec = importlib.util.spec_from_file_location("kit_under_test", KIT)
    kit = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kit)
    calls = []
    monkeypatch.setattr(shutil, "which", lambda name: uv)
    monkeypatch.setattr(subprocess, "call", lambda command: calls.append(command) or 0)
    kit.install_packages(tmp_path, Path(sys.executable))
    start = [uv, "pip", "install", "--python"] if uv else [sys.executable, "-m", "pip", "install"]
    assert calls[-1][:4] == start
    assert calls[-1][-4:] == ["-r", str(CHECKOUT / "requirements.txt"), "-e", str(CHECKOUT)]

    monkeypatch.setattr(subprocess, "call", lambda command: 3)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2e9))
    words = r"installing the requirements failed \(exit status 3\)(.|\n)*Network(.|\n)*2.0 GB"
    with pytest.raises(kit.StepFailed, match=words):
        kit.install_packages(tmp_path, Path(sys.executable))


def test_an_unsupported_python_is_named_with_those_that_work(kit, monkeypatch, capsys):
    monkeypatch.setattr(sys, "version_info", (3, 10, 1))
    assert kit.main(["run"]) == 1
    assert "runs on Python 3.11, 3.12 and 3.13" in capsys.readouterr().err


def test_without_a_command_it_explains_itself(kit, capsys):
    assert kit.main([]) == 2
    assert kit.main(["--help"]) == 0
    assert "python kit.py test" in capsys.readouterr().out


def test_the_program_gets_the_arguments_and_its_exit_status_comes_back(tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(CHECKOUT)!r}); import kit; "
        "sys.exit(kit.hand_over([sys.executable, '-c', 'import sys; sys.exit(len(sys.argv))', "
        "'a b', 'c']))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 3


def test_it_needs_nothing_but_the_standard_library_and_parses_on_old_pythons():
    tree = ast.parse(KIT.read_text(encoding="utf-8"), feature_version=(3, 7))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.split(".")[0])
    assert names <= sys.stdlib_module_names | {"__future__"}
    assert KIT.read_text(encoding="utf-8").isascii()  # a console may know no more


def test_pins_lie_in_the_ranges_of_the_package():
    lines = (CHECKOUT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    texts = [line.split("#")[0].strip() for line in lines]
    pins = {r.name: r for r in (Requirement(text) for text in texts if text)}
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    ranges = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    for needed in map(Requirement, ranges):
        (pin,) = pins[needed.name].specifier
        assert pin.operator == "=="
        assert needed.specifier.contains(pin.version), needed.name
    assert project["requires-python"] == ">=3.11,<3.14"


@pytest.mark.skipif(os.name == "nt", reason="starts a shell script; runs on Linux and macOS")
def test_the_ci_script_is_executable_and_parses():
    script = CHECKOUT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)
