"""Text is text: what jsonargparse makes of values, corrected where it reads text as YAML once more.

By itself it parses every value of a key that may hold text or null, from a flag and out of a file alike: `# x`, `---`,
`&a` and a quoted `'~'` become null. Here such a value is what was typed; of a flag, `null` alone unsets the key.
"""

from importlib import import_module
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from jsonargparse import Namespace, set_dumper

from mtp_lightning.config.keys.linked_keys import SEED_KEY
from mtp_lightning.yaml_lines import Loader, dump_yaml

_typehints: Any = import_module("jsonargparse._typehints")
_loaders_dumpers: Any = import_module("jsonargparse._loaders_dumpers")
_core: Any = import_module("jsonargparse._core")
_apply_interpolation = _core.omegaconf_apply
_check_type = _typehints.ActionTypeHint._check_type
_call = _typehints.ActionTypeHint.__call__
_parse_value = _typehints.parse_value_or_config


def is_text(hint: Any) -> bool:
    """Whether all that a key can hold is text, the name of a file among it, or null."""
    if get_origin(hint) in (Union, UnionType):
        return str in get_args(hint) and set(get_args(hint)) <= {str, Path, NoneType}
    return hint is str


def _holds_mapping(hint: Any) -> bool:
    """Whether a key can hold a mapping with keys of a user's own."""
    return dict in (get_origin(hint), *map(get_origin, get_args(hint)))


def _check_text(self: Any, value: Any, append: bool = False, cfg: Any = None, mode: Any = None) -> Any:
    if isinstance(value, str) and is_text(self._typehint):
        return value
    if isinstance(value, Namespace) and _holds_mapping(self._typehint):  # `weights.a: 1` out of a file
        value = value.as_dict()
    try:
        return _check_type(self, value, append=append, cfg=cfg, mode=mode)
    except OverflowError as error:  # a whole number where a fraction may stand
        raise TypeError(f'Parser key "{self.dest}": larger than any floating-point number') from error


def _call_with_text(self: Any, *args: Any, **kwargs: Any) -> Any:
    if len(args) == 4 and args[2] == "null" and self._typehint is not str and is_text(self._typehint):
        args = (*args[:2], None, args[3])
    return _call(self, *args, **kwargs)


def _parse_own_value(value: Any, enable_path: bool = True, simple_types: bool = False) -> Any:
    """`--data.init_args.source.path VALUE` is left to the key that it is for."""
    if isinstance(value, _typehints.NestedArg):
        return value, None
    return _parse_value(value, enable_path=enable_path, simple_types=simple_types)


def _apply_once(parser: Any, config: Any) -> Any:
    """The parsers that jsonargparse has for classes come after the one for everything, and are given what that one
    resolved: a `${` in it is text."""
    return _apply_interpolation(parser, config) if f"--{SEED_KEY}" in parser._option_string_actions else config


def keep_text() -> None:
    """For all parsers of this process, from now on."""
    _loaders_dumpers.yaml_default_loader = Loader
    _typehints.ActionTypeHint._check_type = _check_text
    _typehints.ActionTypeHint.__call__ = _call_with_text
    _typehints.parse_value_or_config = _parse_own_value
    _core.omegaconf_apply = _apply_once
    set_dumper("yaml", dump_yaml)
