"""What a sweep is asked to do: a YAML file and the command line, checked key by key."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import yaml

from entrep.pipeline import OPTIONS, parse_parameters

_SHORTHANDS = {"seeds": "seed", "folds": "folds"}  # keys that are parameters, too


@dataclass(frozen=True)
class Spec:
    """A sweep as asked for. Field comments say what a value does."""

    axes: dict[str, tuple] = field(default_factory=dict)  # parameters and their values
    profile: str = "demo"  # demo, mini or full
    data: str = ""  # the challenge's folder; empty: notebook 01 draws pictures
    out: str = ""  # the sweep's folder
    only: str = ""  # wanted notebooks, such as "03,04"; those upstream run, too; empty: all
    notebooks: str = ""  # folder of the notebooks; empty: that of the checkout
    jobs: int = 2  # notebooks at a time
    threads: int = 0  # CPU threads of each; 0: the cores divided by the jobs
    memory_gb: float = 0.0  # for all jobs together; 0: not watched
    retries: int = 0  # how often a notebook that failed is tried again
    max_runs: int = 1000  # more are refused


_MOST = 100_000  # values of a range; more would fill the memory before they are refused
_LEAST = {"jobs": 1, "threads": 0, "memory_gb": 0, "retries": 0, "max_runs": 1}
_KEYS = ("parameters", *_SHORTHANDS, *(f.name for f in fields(Spec) if f.name != "axes"))


def read_spec(path: str | Path) -> dict[str, object]:
    """Read a sweep's file: the fields of `Spec`, with `parameters`, `seeds` and `folds` for axes.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is no YAML, or for a key that is unknown or comes twice; the message
            names its line.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: there is no such file with a sweep's keys.")
    try:
        text = Path(path).read_text(encoding="utf-8")
        root = yaml.compose(text, yaml.SafeLoader)
        values = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        place = getattr(error, "problem_mark", None)
        line = f", line {place.line + 1}" if place else ""
        problem = getattr(error, "problem", error)
        raise ValueError(f"{path}{line}: this is no YAML ({problem}).") from error
    _check_keys(path, root, _KEYS, "the file")
    for key, node in root.value:
        if key.value == "parameters":
            _check_keys(path, node, None, "parameters")
    parameters = [
        (str(name), _as_list(value)) for name, value in values.pop("parameters", {}).items()
    ]
    shorthands = {key: values.pop(key) for key in _SHORTHANDS if key in values}
    if "only" in values:  # YAML reads 03 as a number
        values["only"] = ",".join(map(str, _as_list(values["only"])))
    return {**values, "axes": make_axes(parameters, **shorthands)}


def _as_list(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def _check_keys(path: str | Path, node: yaml.Node, known: Sequence[str] | None, what: str) -> None:
    """Refuse anything but `key: value` lines, unknown keys (None: any will do) and doubles."""
    if not isinstance(node, yaml.MappingNode):
        line = f", line {node.start_mark.line + 1}" if node else ""
        raise ValueError(f"{path}{line}: {what} must hold lines such as 'epochs: [4, 8]'.")
    seen = set()
    for key, _ in node.value:
        place = f"{path}, line {key.start_mark.line + 1}: {key.value}"
        if known and key.value not in known:
            raise ValueError(f"{place}: there is no such key; there are {', '.join(known)}.")
        if key.value in seen:
            raise ValueError(f"{place}: the key is there twice.")
        seen.add(key.value)


def make_spec(file: Mapping[str, object], command_line: Mapping[str, object]) -> Spec:
    """Join what a file and the command line ask for; the command line wins, axis by axis.

    Args:
        file: of `read_spec`, or empty.
        command_line: fields of `Spec`; None where nothing was given.

    Raises:
        ValueError: for a value of the wrong type, or below its least.
    """
    given = {name: value for name, value in command_line.items() if value is not None}
    values = {**file, **given, "axes": {**file.get("axes", {}), **given.get("axes", {})}}
    for name, value in values.items():
        expected = type(getattr(Spec(), name))
        if expected is float and type(value) is int:
            values[name] = value = float(value)
        if type(value) is not expected:
            raise ValueError(f"{name}: expected {expected.__name__}, got {value!r}.")
        if name in _LEAST and not value >= _LEAST[name]:  # also refuses NaN
            raise ValueError(f"{name}: expected {_LEAST[name]} or more, got {value}.")
    spec = Spec(**values)
    if not spec.out:
        raise ValueError("--out: give the sweep a folder, such as --out runs/sweep.")
    return spec


def make_axes(
    parameters: Iterable[tuple[str, Sequence[object]]], seeds: object = None, folds: object = None
) -> dict[str, tuple]:
    """Parameters and their values, typed as `RunConfig` has them.

    Args:
        parameters: names and values; texts are read, such as "1e-3" for a float.
        seeds: values of `seed`, as a list or as text such as "0-4,7"; None: not given.
        folds: values of `folds`, likewise.

    Raises:
        ValueError: for a name or a value that comes twice, a parameter without a value, a
            value of the wrong type, or a name that has an option of its own.
    """
    given = [(name, list(values)) for name, values in parameters]
    for option, values in (("seeds", seeds), ("folds", folds)):
        if values is not None:
            given.append((_SHORTHANDS[option], _whole_numbers(option, values)))
    axes: dict[str, tuple] = {}
    for name, values in given:
        if name in OPTIONS or name == "threads":
            raise ValueError(f"{name}: give it with {OPTIONS.get(name, '--threads')}.")
        if name in axes:
            raise ValueError(f"{name}: the parameter is given twice; give all its values at once.")
        if not values:
            raise ValueError(f"{name}: there is no value, so there is no run; give at least one.")
        axes[name] = tuple(_typed(name, value) for value in values)
        (value, times), *_ = Counter(axes[name]).most_common(1)
        if times > 1:
            raise ValueError(f"{name}: the value {value!r} is given twice.")
    return axes


def split_pair(pair: str) -> tuple[str, list[str]]:
    """`name=a,b,c` of the command line as name and texts.

    >>> split_pair("epochs=4, 8")
    ('epochs', ['4', '8'])
    """
    name, equals, text = pair.partition("=")
    if not equals or not name.strip():
        raise ValueError(f"-p {pair}: expected name=value or name=a,b,c, such as -p epochs=4,8.")
    values = [value.strip() for value in text.split(",")]
    if "" in values:
        raise ValueError(f"-p {pair}: a value is empty; give at least one, such as -p epochs=4,8.")
    return name.strip(), values


def _typed(name: str, value: object) -> object:
    """A text read as a value of the parameter's type; a number as it is."""
    if not isinstance(value, str | int | float):
        raise ValueError(f"{name}: expected a number or a text, got {value!r}.")
    return parse_parameters([f"{name}={value}"])[name] if isinstance(value, str) else value


def _whole_numbers(option: str, values: object) -> list[object]:
    """The numbers of a text with single ones and ranges, "0-2,7"; anything else as a list."""
    if not isinstance(values, str):
        return _as_list(values)
    found: list[object] = []
    for part in values.split(","):
        first, dash, last = part.strip().partition("-")
        try:
            numbers = range(int(first), int(last if dash else first) + 1)
        except ValueError:
            raise ValueError(
                f"{option}: expected whole numbers such as 0-4 or 3,5, got {values!r}."
            ) from None
        if len(numbers) > _MOST:
            raise ValueError(f"{option}: {part} are more than {_MOST:,} values; give fewer.")
        found += numbers
    return found
