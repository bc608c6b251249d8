"""Refuses overrides of a bundle's config that would have no effect, by name and with the nearest valid key.

MONAI writes every override into the config, known or not: `--max_epoch 1` makes a new entry that nothing reads, and the
training goes on with the configured `max_epochs`. A config that begins its `initialize` with

    "initialize": [{"_target_": "monai_anon.overrides.refuse_misspelt", "base": "train.json"}]

(`base` names the file the line stands in) stops there instead, before anything is built. An overlay that needs steps of
its own adds them with `"+initialize"`, so that the check stays.

How it knows the overrides. Neither MONAI's workflow nor its parser keeps them, so they are found as what differs: the
config as MONAI merged it (base, overlays, command line or `ConfigWorkflow(**override)` alike) is compared with the
base file read anew from beside the config in use. The merged config is found on the call stack, as an expression or
component has no other way to the parser that evaluates it. An entry that the base file has not is accepted where
something reads it:

- another entry refers to it (`@entry`; macros, `%entry`, are already replaced when the check runs and do not count),
- it is an argument of the `_target_` it belongs to, even if the base file leaves that argument at its default,
- MONAI reads it: the workflow's run, initialize and finalize ids and its properties,
- it is a comment or setting of MONAI's parser (`_desc_`, `_disabled_`, ...), or part of an entry replaced whole.

An entry that the base file does have must keep its kind: `--amp true` is a string for MONAI's command line (fire), and
a non-empty string counts as true whatever it says. Configuration text (`$`, `@`, `%`) and None are always accepted.
A misspelt *parent* (`--train#traner#max_epochs 1`) never comes here: MONAI's parser refuses it with a KeyError.
"""

from __future__ import annotations

import difflib
import inspect
import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from pydoc import locate
from types import FrameType
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.config_item import ConfigComponent
from monai.bundle.utils import EXPR_KEY, ID_REF_KEY, ID_SEP_KEY, MACRO_KEY

__all__ = ["OverrideError", "find_problems", "refuse_misspelt"]

_ABSENT = object()
_REFERENCE = re.compile(rf"{ID_REF_KEY}(\w+(?:(?:{ID_SEP_KEY}|#)\w+)*)")


class OverrideError(ValueError):
    """An override names an entry that nothing reads, or gives it a value of the wrong kind."""


def refuse_misspelt(base: str) -> None:
    """Refuse the overrides of the config that is being evaluated right now, all of them at once.

    Args:
        base: name of the config file that lists the valid entries, beside the first config file in use; without a
            workflow (a bare `ConfigParser`) a path.

    Raises:
        OverrideError: names each refused entry, its value and the nearest valid entry. MONAI wraps it in a
            RuntimeError; under `python -m monai.bundle` the process ends with the message alone (SystemExit).
    """
    parser, workflow = _parser_and_workflow(sys._getframe(1))
    path = Path(base) if workflow is None else Path(workflow.config_root_path) / base
    if not path.is_file():
        raise OverrideError(
            f"{path} not found: it lists the entries that may be overridden. In a copied or renamed config, let "
            f"`base` of {refuse_misspelt.__name__} in `initialize` name the copy."
        )
    problems = find_problems(parser.get(), ConfigParser.load_config_files([path]), _read_by_monai(workflow))
    if problems:
        message = "\n  ".join([f"Overrides refused, compared with {path}:", *problems])
        if is_monai_command():
            raise SystemExit(message)  # the only exception that MONAI's evaluation does not bury in two tracebacks
        raise OverrideError(message)


def find_problems(config: dict[str, Any], base: dict[str, Any], read: Iterable[str] = ()) -> list[str]:
    """One line for each entry of the merged `config` that the `base` config does not allow; empty if all is well.

    Args:
        config: the merged config, macros replaced.
        base: the config before any override.
        read: ids, parts joined by "::", that are read from outside of the config.
    """
    read_ids = _referenced_ids(config) | {_normalized(i) for i in read}
    base_ids = list(_ids(base))
    problems = []
    for id_, given, default in _differences(config, base):
        if default is not _ABSENT:
            advice = _kind_advice(given, default)
            if advice:
                problems.append(f"'{id_}' is {_text(default)} by default, got {_text(given)}: {advice}.")
        elif not any(i == id_ or i.startswith(id_ + ID_SEP_KEY) for i in read_ids):
            nearest = _nearest(id_, base_ids, config)
            hint = f"did you mean '{nearest}'?" if nearest else f"valid entries: {', '.join(_siblings(id_, base_ids))}."
            problems.append(f"'{id_}' (given: {_text(given)}) is read by nothing; {hint}")
    return problems


def _parser_and_workflow(frame: FrameType | None) -> tuple[ConfigParser, ConfigWorkflow | None]:
    """The innermost parser on the call stack, which is the one evaluating the caller, and the workflow that owns it."""
    parser: ConfigParser | None = None
    while frame is not None:
        owner = frame.f_locals.get("self")
        if parser is None and isinstance(owner, ConfigParser):
            parser = owner
        if isinstance(owner, ConfigWorkflow) and owner.parser is parser:
            return owner.parser, owner
        frame = frame.f_back
    if parser is None:
        raise OverrideError("refuse_misspelt works inside a MONAI config only; elsewhere call find_problems.")
    return parser, None


def _read_by_monai(workflow: ConfigWorkflow | None) -> set[str]:
    """Ids that a workflow reads without any reference to them in the config."""
    if workflow is None:
        return set()
    properties = (workflow.properties or {}).values()
    return {workflow.init_id, workflow.run_id, workflow.final_id, *(p["id"] for p in properties if "id" in p)}


def is_monai_command() -> bool:
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return spec is not None and spec.name == "monai.bundle.__main__"


def _differences(given: Any, default: Any, id_: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Every (id, given value, default) below `given` to judge; the default is _ABSENT for an entry of no known use."""
    if isinstance(given, dict) and isinstance(default, dict):
        same_target = given.get("_target_") == default.get("_target_")
        for key, value in given.items():
            if key in default and same_target:
                yield from _differences(value, default[key], _join(id_, key))
            elif key not in _allowed_keys(given, default):
                yield _join(id_, key), value, _ABSENT
    elif isinstance(given, list) and isinstance(default, list) and len(given) == len(default):
        for i, (value, default_value) in enumerate(zip(given, default, strict=True)):
            yield from _differences(value, default_value, _join(id_, i))
    elif id_:
        yield id_, given, default


def _allowed_keys(given: dict[str, Any], default: dict[str, Any]) -> set[str]:
    """Keys of `given` that need no reference: a component's arguments, comments, all keys of a dict replaced whole."""
    if "_target_" in given:
        same = default if given["_target_"] == default.get("_target_") else {}
        arguments = _arguments(given["_target_"])
        # what cannot be looked up (an expression, a short name) is judged by the base file, if that knows it
        return (
            set(given) if arguments is None and not same else {*same, *(arguments or ()), *ConfigComponent.non_arg_keys}
        )
    replaced = not default or not default.keys() <= given.keys()
    return set(given) if replaced else {key for key in given if str(key).startswith("_")}


def _arguments(target: Any) -> set[str] | None:
    """Names of the arguments of a dotted `_target_`, through **kwargs to its base classes; None if not to be found."""
    found = locate(target) if isinstance(target, str) and "." in target else None
    if not callable(found):
        return None
    names: set[str] = set()
    for function in [c.__init__ for c in inspect.getmro(found)] if inspect.isclass(found) else [found]:
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):  # a C function without a text signature
            break
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        names |= {p.name for p in parameters if p.kind in named}
        if all(p.kind is not inspect.Parameter.VAR_KEYWORD for p in parameters):
            break
    return names - {"self"}


def _kind_advice(given: Any, default: Any) -> str:
    """What would be right in place of `given`, or "" if it is of the default's kind."""
    if given is None or _is_syntax(given):
        return ""
    if isinstance(given, str) and given.lower() in ("true", "false") and not _is_plain_text(default):
        return f"write {given.capitalize()}"
    if default is None or _is_syntax(default) or type(given) is type(default):
        return ""
    if isinstance(default, bool):
        return "write True or False"
    if isinstance(default, int | float):
        whole = isinstance(default, int) and not isinstance(given, int)
        number = isinstance(given, int | float) and not isinstance(given, bool)
        return "" if number and not whole else f"write a {'whole ' if isinstance(default, int) else ''}number"
    if isinstance(default, str):
        return "" if isinstance(given, str | Path) else "write a text, a number in double quotes: '\"12\"'"
    if isinstance(default, list):
        return "" if isinstance(given, list | tuple) else "write a list: '[1,2]'"
    if isinstance(default, dict):
        return "" if isinstance(given, dict) else f"set one of its entries: {', '.join(map(str, default))}"
    return ""


def _nearest(id_: str, base_ids: list[str], config: dict[str, Any]) -> str:
    """The id that `id_` most likely stands for: same name elsewhere, else similar beside it, else similar; or ""."""
    parent, _, leaf = id_.rpartition(ID_SEP_KEY)
    by_depth = sorted(base_ids, key=lambda i: i.count(ID_SEP_KEY))
    for candidate in by_depth:
        if _leaf(candidate) == leaf:
            return candidate
    component = ConfigParser(config=config, globals=False).get(parent) if parent else None
    beside = {_leaf(i): i for i in _siblings(id_, base_ids)}
    if isinstance(component, dict):
        beside |= {a: _join(parent, a) for a in sorted(_arguments(component.get("_target_")) or ()) if a not in beside}
    elif not parent:
        options = inspect.signature(ConfigWorkflow.__init__).parameters
        beside |= {o: o for o in options if o not in (*beside, "self", "override")}
    elsewhere = {_leaf(i): i for i in reversed(by_depth)}
    for options_ in (beside, elsewhere):
        match = difflib.get_close_matches(leaf.lower(), options_, n=1)
        if match:
            return options_[match[0]]
    return ""


def _ids(config: Any, id_: str = "") -> Iterator[str]:
    """Ids of all named entries of a config, comments left out."""
    items = config.items() if isinstance(config, dict) else enumerate(config) if isinstance(config, list) else ()
    for key, value in items:
        if not str(key).startswith("_"):
            if isinstance(config, dict):
                yield _join(id_, key)
            yield from _ids(value, _join(id_, key))


def _siblings(id_: str, base_ids: list[str]) -> list[str]:
    parent = id_.rpartition(ID_SEP_KEY)[0]
    return [i for i in base_ids if i.rpartition(ID_SEP_KEY)[0] == parent]


def _referenced_ids(config: Any) -> set[str]:
    """Ids that any `@reference` of the config names, also inside expressions."""
    if isinstance(config, dict | list):
        values = config.values() if isinstance(config, dict) else config
        return set().union(*(_referenced_ids(v) for v in values))
    if isinstance(config, str) and config.startswith((EXPR_KEY, ID_REF_KEY)):
        return {_normalized(i) for i in _REFERENCE.findall(config)}
    return set()


def _is_syntax(value: Any) -> bool:
    return isinstance(value, str) and value.startswith((EXPR_KEY, ID_REF_KEY, MACRO_KEY))


def _is_plain_text(value: Any) -> bool:
    return isinstance(value, str) and not _is_syntax(value)


def _normalized(id_: str) -> str:
    return id_.replace("#", ID_SEP_KEY)


def _join(parent: str, key: Any) -> str:
    return f"{parent}{ID_SEP_KEY}{key}" if parent else str(key)


def _leaf(id_: str) -> str:
    return id_.rpartition(ID_SEP_KEY)[2]


def _text(value: Any) -> str:
    """A value as it would stand in a config, shortened to 60 characters."""
    text = json.dumps(value, default=repr) if isinstance(value, str | dict | list | tuple) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
