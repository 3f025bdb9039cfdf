"""Reading a preset: YAML files that extend one another, and one line about what cannot be read.

A preset is one file in ``workflow/presets``, or anywhere else. Under ``extends`` it may name another one, of which it
overrides single settings. What may stand in it says `prior.config`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from prior.config import Preset
from prior.errors import UserError

PRESETS = Path(__file__).resolve().parent.parent / "workflow" / "presets"
# Tables whose entries are named by the user: an overriding preset replaces them whole, so that it can also drop one.
REPLACED = {"objectives", "benchmarks"}
# More would not be read.
COMPLAINTS = 3

Place = tuple[str, ...]


def load_preset(name: str) -> Preset:
    """Load and validate a preset by its name in ``workflow/presets`` or by the path of a YAML file.

    Raises
    ------
    UserError
        If the preset does not exist or breaks the schema; the message names the nearest valid key or name.
    """
    path = _find(name, Path())
    content = _read(path)
    try:
        if "name" in content:
            raise UserError("'name' is not a setting, a preset has the name of its file; remove it")
        try:
            return Preset.model_validate(content | {"name": path.stem})
        except ValidationError as error:
            raise UserError("; ".join(explain(error, Preset)[:COMPLAINTS])) from None
    except UserError as error:
        raise UserError(f"preset '{path.stem}': {error}") from None


def lock_file(preset: str) -> Path:
    """The file beside a preset's that says at which commits it fetches from a hub (see `prior.hub`)."""
    return _find(preset, Path()).with_suffix(".lock")


def _find(name: str, folder: Path) -> Path:
    """The file of a preset; a path counts from `folder`, a bare name means one of ours."""
    return folder / name if name.endswith((".yaml", ".yml")) else PRESETS / f"{name}.yaml"


class _Twice(yaml.MarkedYAMLError):
    """A key is given twice."""


class _Loader(yaml.SafeLoader):
    """YAML where a key given twice is an error rather than overwritten, and 2e-3 a number as in YAML 1.2."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise _Twice(problem=f"gives '{key.value}' a second time; keep one", problem_mark=key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def read_yaml(path: Path, where: str) -> dict[str, Any]:
    """The settings in a YAML file; `where` opens the line about what cannot be read."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader) or {}
    except UnicodeDecodeError:
        raise UserError(f"{where}: {_short(path)} is not UTF-8 text; save it as such") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        problem = error.problem if isinstance(error, _Twice) else "is not valid YAML; mend its indentation or quotes"
        raise UserError(f"{where}: {_short(path)}{line} {problem}") from None
    if not isinstance(content, dict):
        raise UserError(f"{where}: {_short(path)} holds no settings; write `key: value` lines")
    return content


def _read(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The content of a preset file laid over the preset that it extends."""
    where = f"preset '{path.stem}'"
    if not path.is_file():
        known = sorted(entry.stem for entry in PRESETS.glob("*.yaml"))
        nearest = difflib.get_close_matches(path.stem, known, n=1)
        hint = f"did you mean '{nearest[0]}'?" if nearest else f"known presets: {', '.join(known)}"
        raise UserError(f"{where}: there is no file {_short(path)}; {hint}")
    if path.resolve() in seen:
        raise UserError(f"{where}: 'extends' leads back to itself; name another preset there")
    content = read_yaml(path, where)
    base = content.pop("extends", None)
    if base is None:
        return content
    return _overlay(_read(_find(str(base), path.parent), (*seen, path.resolve())), content)


def _overlay(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        same_kind = isinstance(value, dict) and isinstance(base.get(key), dict)
        if same_kind and key not in REPLACED and value.get("kind", base[key].get("kind")) == base[key].get("kind"):
            merged[key] = _overlay(base[key], value)
        else:
            merged[key] = value
    return merged


def _short(path: Path) -> str:
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


# pydantic's kinds of errors, in our words; what it says of others can stay.
PHRASES = {
    "model_type": "should hold settings, written as `key: value`",
    "dict_type": "should hold settings, written as `key: value`",
    "bool_type": "should be true or false",
    "int_type": "should be a whole number",
    "int_parsing": "should be a whole number",
    "float_type": "should be a number",
    "float_parsing": "should be a number",
    "string_type": "should be a text",
    "finite_number": "should be a finite number",
    "string_too_short": "should not be empty",
    "too_short": "should name at least {min_length}",
}


def explain(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """pydantic's complaints about the settings of a model as phrases: where, what, remedy.

    A misspelt key is a superfluous one and often a missing one as well; the former is told, with the nearest.
    """
    items = error.errors()
    unknown = [_place(item) for item in items if item["type"] == "extra_forbidden"]
    phrases = []
    for item in items:
        place = _place(item)
        rivals = [other[-1] for other in unknown if other[:-1] == place[:-1]]
        if item["type"] == "extra_forbidden":
            phrases.append(_unknown_key(place, model))
        elif item["type"] != "missing" or not difflib.get_close_matches(place[-1], rivals):
            phrases.append(_complaint(place, item))
    return phrases


def _place(item: ErrorDetails) -> Place:
    """Where in the preset a complaint belongs, without what only pydantic knows of: tags and marks."""
    return tuple(str(part) for part in item["loc"] if part != "[key]" and not str(part).startswith("<"))


def _complaint(place: Place, item: ErrorDetails) -> str:
    where, given, details = ".".join(place), item["input"], item.get("ctx", {})
    if item["type"] == "missing":
        written = difflib.get_close_matches(place[-1], map(str, given), n=1) if isinstance(given, Mapping) else []
        return f"{where}: is missing; " + (f"did you mean it by '{written[0]}'?" if written else "add it")
    if item["type"] == "union_tag_invalid":
        kinds = re.findall(r"<(\w+)>", details["expected_tags"])
        return f"{where}.kind: should be {' or '.join(kinds)} (got {details['tag'][1:-1]})"
    if item["type"] in PHRASES:
        message = PHRASES[item["type"]].format(**details)
    else:
        message = item["msg"].removeprefix("Value error, ").replace("Input should", "should")
    shown = f" (got {given!r})" if isinstance(given, str | int | float) and item["type"] != "value_error" else ""
    return f"{where + ': ' if where else ''}{message}{shown}"


def _unknown_key(place: Place, model: type[BaseModel]) -> str:
    *parent, name = place
    known = [other for other in _places(model) if other != ("name",)]
    siblings = [other for other in known if len(other) == len(place) and _within(parent, other)]
    where = ".".join(place)
    for candidates in (siblings, known):
        names = [other[-1] for other in candidates]
        if nearest := difflib.get_close_matches(name, names, n=1):
            if candidates is siblings and nearest[0] == name:
                return f"'{where}' is a setting of another kind; change '{'.'.join([*parent, 'kind'])}' or remove it"
            shortest = min((other for other in candidates if other[-1] == nearest[0]), key=len)
            meant = (*parent, nearest[0]) if candidates is siblings else shortest
            return f"'{where}' is not a setting; did you mean '{'.'.join(meant)}'?"
    return f"'{where}' is not a setting; remove it"


def _within(parent: Sequence[str], other: Place) -> bool:
    return all(known in (part, "*") for part, known in zip(parent, other, strict=False))


def _places(annotation: Any, place: Place = ()) -> Iterator[Place]:
    """Every key that a preset may hold, with ``*`` for names that the user chooses: candidates for "did you mean"."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, field in annotation.model_fields.items():
            yield (*place, name)
            yield from _places(field.annotation, (*place, name))
    elif get_origin(annotation) is dict:
        yield from _places(get_args(annotation)[1], (*place, "*"))
    else:
        for part in get_args(annotation):
            yield from _places(part, place)
