"""Secrets stay in memory: passwords in URLs, and tokens that the environment holds, are masked in all that is written,
sent or printed.

A configuration file must still be of use to the run that reads it again: there a value that is a secret of the
environment becomes a reference to it (`references`), and the address of the MLflow store, masked, is completed from
the environment (`unmasked`).
"""

import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any
from urllib.parse import quote, quote_plus, unquote

MASK = "***"
SHORTEST = 6
"""Shorter values of the environment are left alone: they stand in ordinary words."""
_SECRET_NAME = re.compile(
    r"(^|_)(TOKEN|PASSWORD|PASSWD|PASSPHRASE|PASS|PWD|SECRET|SECRETS|KEY|APIKEY|CREDENTIAL|CREDENTIALS|PAT)(_ID)?(_|$)",
    re.IGNORECASE,
)
_NOT_SECRET = ("PWD", "OLDPWD")
_USERINFO = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.\-]*://)(?P<user>[^\s/?#:'\"<>]*)(?::(?P<password>[^\s/?#'\"<>]*))?@"
)
_ONE_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://[^/?#:@]*:(?P<password>.*)@[^@]*")
"""Of a whole URL whose password may hold anything."""
_QUERY = re.compile(
    r"(?P<key>[?&;](?:sig|key|[\w.\-]*(?:password|passwd|pwd|token|secret|api_?key|access_?key|signature|credential)"
    r"[\w.\-]*)=)"
    r"(?P<value>[^&;#\s'\"<>]+)",
    re.IGNORECASE,
)

_given: set[str] = set()
"""Secrets that did not come out of the environment, as a flag's."""


def mask(text: str, known: Sequence[str] | None = None) -> str:
    """`text` with `***` in the place of passwords in URLs and of every secret that is known.

    postgresql://ann:hunter22@db/runs -> postgresql://ann:***@db/runs
    """
    return mask_urls(mask_known(text, known))


def mask_known(text: str, known: Sequence[str] | None = None) -> str:
    """`text` without the secrets of the environment and of URLs that were given; other URLs stay as they are.

    Args:
        known: `known_secrets()`, for whoever masks many texts at a time.
    """
    for secret in known_secrets() if known is None else known:
        if secret in text:
            text = text.replace(secret, MASK)
    return text


def mask_urls(text: str) -> str:
    if "://" not in text:
        return text
    return _QUERY.sub(rf"\g<key>{MASK}", _USERINFO.sub(_masked_userinfo, text))


def masked(value: Any) -> Any:
    """Nested mappings and sequences with all their text masked."""
    known = known_secrets()
    return each_text(value, lambda text: mask(text, known))


def references(value: Any) -> Any:
    """What is written into a configuration: a value that is a secret of the environment as `${oc.env:NAME}`, which
    whoever reads the file again resolves; all other text masked."""
    names, known = {secret: name for name, secret in _environment().items()}, known_secrets()
    return each_text(value, lambda text: f"${{oc.env:{names[text]}}}" if text in names else mask(text, known))


def each_text(value: Any, change: Callable[[str], str]) -> Any:
    """Nested mappings and sequences with all their text changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: each_text(item, change) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(each_text(item, change) for item in value)
    return value


def unmasked(url: str, variable: str) -> str:
    """The URL that an environment variable holds, where `url` is its masked form; else `url`."""
    whole = os.environ.get(variable, "")
    return whole if MASK in url and mask(whole) == url else url


def remember(url: str) -> None:
    """A password in a URL that was given elsewhere than in the environment is a secret from now on."""
    _given.update(_passwords(url))


def known_secrets() -> Sequence[str]:
    """Longest first, so that none is cut by another; each as it is, and as it stands in a URL."""
    return _known(frozenset(os.environ.items()), frozenset(_given))


@lru_cache(maxsize=4)
def _known(environment: Collection[tuple[str, str]], given: Collection[str]) -> Sequence[str]:
    plain = {*_environment().values(), *given}
    for _, value in environment:
        if "://" in value:
            plain.update(_passwords(value))
    forms = {form for secret in plain for form in (secret, quote(secret, safe=""), quote_plus(secret), unquote(secret))}
    return sorted((form for form in forms if len(form) >= SHORTEST), key=len, reverse=True)


def _environment() -> dict[str, str]:
    """Variables that hold a secret by their names. A path is none, as a key's file."""
    return {
        name: value
        for name, value in os.environ.items()
        if _SECRET_NAME.search(name)
        and name not in _NOT_SECRET
        and len(value) >= SHORTEST
        and "://" not in value
        and not (value.startswith(("/", "~", ".")) and os.path.exists(os.path.expanduser(value)))
    }


def _passwords(text: str) -> set[str]:
    whole = _ONE_URL.fullmatch(text)
    found: set[str] = {whole["password"]} if whole else set()
    for match in _USERINFO.finditer(text):
        user, password = match["user"], match["password"]
        found.update([password] if password else [user] if match["scheme"].startswith("http") else [])
    found.update(match["value"] for match in _QUERY.finditer(text))
    return found


def _masked_userinfo(match: "re.Match[str]") -> str:
    if match["password"] is None:  # in http a name alone is a token
        return f"{match['scheme']}{MASK}@" if match["scheme"].startswith("http") else match[0]
    return f"{match['scheme']}{match['user']}:{MASK}@"


class MaskedStream:
    """A text stream that masks what is known to be secret, whoever prints it. URLs of others pass: generated text is
    printed as it is."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(mask_known(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
