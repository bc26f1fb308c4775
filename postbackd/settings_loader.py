# SPDX-License-Identifier: MIT
"""Reads settings from a TOML file, the environment and --set, the later one winning, and checks them.

Raises ConfigError: one line with the setting, where it came from, what is wrong and the nearest right name.
"""

import difflib
import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from postbackd.errors import ConfigError
from postbackd.queue_url import parse_queue_url
from postbackd.settings import Declaration, Host, SenderLimits, Settings, declarations

ENVIRONMENT_PREFIX = "POSTBACKD_"
REDIS_PORT = 6379
OWN_PATHS = ("/health", "/ready")
WITHOUT_SECTION = ("data_dir", "hosts")  # in the environment
_HOST_NAME = re.compile(r'hosts\."([^"]+)"\.(\w+)')
KEYED: dict[str, Any] = {"hosts": Host, "ingest.senders": SenderLimits, "security.signing_keys": str | list[str]}
MASK = "***"  # what `config` prints in the place of a secret
_MASKED = re.compile(r"(?:^|[:=])\*\*\*(?:$|[@&])")  # a whole value, the secret behind a name, or a password of a URL
_PATH_IN_ERROR = re.compile(r" - at `\$\.?([^`]*)`$")


def load(path: str | None, environ: Mapping[str, str], overrides: Sequence[str]) -> Settings:
    """The checked settings; `overrides` are `section.key=value` as given to --set."""
    table: dict[str, Any] = {}
    origins: dict[str, str] = {}
    if path is not None:
        _merge_file(path, table, origins)
    for variable, text in sorted(environ.items()):
        if not variable.startswith(ENVIRONMENT_PREFIX):
            continue
        name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
        if "__" in name or _is_without_section(name, variable):
            _put(table, origins, name.split("__", 1), text, f"environment variable {variable}")
    shown = {f"{d.section}.{d.name}".lstrip(".") for d in declarations() if not d.secret}  # others may hold a secret
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals:
            raise ConfigError(f"--set {override}: write it as section.key=value")
        origin = f"--set {override if name.strip() in shown else name.strip() + '=…'}"
        _put(table, origins, _split_name(name.strip()), text.strip(), origin)
    _check_names(table, origins)
    settings = _convert(table, origins)
    _refuse_masked(settings, origins)
    _check_values(settings)
    return settings


def _is_without_section(name: str, variable: str) -> bool:
    """Whether it is one of the settings that need no section. POSTBACKD_DEBUG, POSTBACKD_PORT (which Kubernetes sets
    for a service of this name) and the like are none and no error, but for one that is all but right."""
    if name in WITHOUT_SECTION:
        return True
    if near := difflib.get_close_matches(name, WITHOUT_SECTION, n=1, cutoff=0.8):
        raise ConfigError(
            f"{name}: there is no such setting: did you mean {near[0]}? (from environment variable {variable})"
        )
    return False


def _split_name(name: str) -> list[str]:
    """`section.key`, or `hosts."name.with.dots".key`, as its parts."""
    if found := _HOST_NAME.fullmatch(name):
        return ["hosts", found.group(1), found.group(2)]
    return name.split(".", 1)


def _merge_file(path: str, table: dict[str, Any], origins: dict[str, str]) -> None:
    try:
        with open(path, "rb") as file:
            table.update(tomllib.load(file))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not valid TOML: {error}") from None
    for section, value in table.items():
        origins[section] = path
        if isinstance(value, dict):
            origins.update({f"{section}.{key}": path for key in value})


def _put(table: dict[str, Any], origins: dict[str, str], parts: list[str], text: str, origin: str) -> None:
    """Set one value given as text: TOML where it is TOML of the wanted kind, the bare text where it is a string.

    A table may be JSON, which is what comes to mind in an environment variable.
    """
    name = ".".join(parts)
    declared = {f"{d.section}.{d.name}".lstrip("."): d for d in declarations()}.get(name)
    value: object = text
    if declared is None or not isinstance(declared.default, str):
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = _json_table(text)
    elif len(text) > 1 and text[0] == text[-1] == '"':
        value = text[1:-1]
    target = table
    for part in parts[:-1]:
        target = target.setdefault(part, {})
        if not isinstance(target, dict):
            raise ConfigError(f"{part}: must be a table (from {origins.get(part, origin)})")
    target[parts[-1]] = value
    origins[name] = origin


def _json_table(text: str) -> object:
    """A JSON object as a table; any other text as it is."""
    if not text.startswith("{"):
        return text
    try:
        return msgspec.json.decode(text.encode("utf-8", "surrogateescape"))
    except msgspec.DecodeError:
        return text


def _check_names(table: Mapping[str, Any], origins: Mapping[str, str]) -> None:
    known: dict[str, list[str]] = {"hosts": []}
    for declaration in declarations():
        known.setdefault(declaration.section, []).append(declaration.name)
    tops = known.pop("")
    for section, value in table.items():
        if section in tops or section == "hosts":
            continue
        if section not in known:
            raise _unknown(section, [*tops, *known], origins)
        if not isinstance(value, dict):
            raise ConfigError(f"{section}: must be a table, [{section}] (from {origins[section]})")
        for key in value:
            if key not in known[section]:
                raise _unknown(f"{section}.{key}", [f"{section}.{name}" for name in known[section]], origins)


def _unknown(name: str, known: list[str], origins: Mapping[str, str]) -> ConfigError:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
    return ConfigError(f"{name}: there is no such setting: {hint} (from {origins.get(name, 'the configuration')})")


def _refuse_infinite(value: object, name: str, origins: Mapping[str, str]) -> None:
    """TOML has nan and inf, which no bound keeps out."""
    if isinstance(value, float) and not math.isfinite(value):
        origin = origins.get(name.split("[", 1)[0], "the configuration")
        raise ConfigError(f"{name}: must be a finite number, not {value} (from {origin})")
    if isinstance(value, dict):
        for key, inner in value.items():
            _refuse_infinite(inner, f"{name}.{key}".lstrip("."), origins)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _refuse_infinite(inner, f"{name}[{index}]", origins)


def _convert(table: dict[str, Any], origins: Mapping[str, str]) -> Settings:
    _refuse_infinite(table, "", origins)
    try:
        return msgspec.convert(table, Settings)
    except msgspec.ValidationError as error:
        text = str(error)
        found = _PATH_IN_ERROR.search(text)
        name = found.group(1) if found else ""
        name = _named(name, table)
        reason = _PATH_IN_ERROR.sub("", text)
        if name.startswith("hosts") and "unknown field" in reason:
            reason += f"; a host has {', '.join(f.name for f in msgspec.structs.fields(Host))}"
        plain = re.split(r"[\[\"]", name, maxsplit=1)[0].rstrip(".")
        declared = {f"{d.section}.{d.name}": d for d in declarations()}.get(plain)
        if declared is not None and declared.choices:
            reason += f": choose from {', '.join(declared.choices)}"
        raise ConfigError(f"{name}: {reason} (from {origins.get(plain, 'the configuration')})") from None


def _named(name: str, table: Mapping[str, Any]) -> str:
    """A path of msgspec's with the key that it leaves out: `hosts[...]` → `hosts."api.partner.example"`."""
    for prefix, kind in KEYED.items():
        if not name.startswith(f"{prefix}[...]"):
            continue
        inner: Any = table
        for part in prefix.split("."):
            inner = inner[part]
        for key, value in inner.items():
            try:
                msgspec.convert(value, kind)
            except msgspec.ValidationError:
                return f'{prefix}."{key}"{name.removeprefix(prefix + "[...]")}'
    return name


def _value_of(settings: Settings, declaration: Declaration) -> object:
    owner = getattr(settings, declaration.section) if declaration.section else settings
    return getattr(owner, declaration.name)


def _check_values(settings: Settings) -> None:
    queue = settings.queue
    try:
        if queue.url:
            parse_queue_url(queue.url)
    except ValueError as error:
        raise ConfigError(f"queue.url: {error}") from None
    if set(queue.prefix) & set("{}"):
        raise ConfigError("queue.prefix: must hold no braces: they mark the part of a key that says its shard")
    if not queue.url and queue.port == REDIS_PORT:
        raise ConfigError("queue.port: 6379 is where other people's Redis listens: choose another, 7379 is the default")
    for path in settings.ingest.paths:
        if not path.startswith("/"):
            raise ConfigError(f"ingest.paths: {path!r} must begin with /")
        if path in OWN_PATHS:
            raise ConfigError(f"ingest.paths: {path!r} is where ingest says how it is: choose another")
    for host in settings.hosts:
        if host != host.lower():
            raise ConfigError(f"hosts.{host}: hosts are known in lower case: write {host.lower()}")


def _refuse_masked(settings: Settings, origins: Mapping[str, str]) -> None:
    """The output of `config` taken as a file: its masks would be secrets that everybody knows."""
    for declaration in declarations():
        if declaration.secret and any(_MASKED.search(text) for text in _texts(_value_of(settings, declaration))):
            name = f"{declaration.section}.{declaration.name}"
            origin = origins.get(name, "the configuration")
            raise ConfigError(f"{name}: {MASK} is a masked value, as config prints it: put the secret in ({origin})")


def _texts(value: object) -> Iterator[str]:
    """Every string within."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


def _format_toml(value: object) -> str:
    """A TOML value; JSON's strings, numbers and lists are TOML too."""
    if isinstance(value, msgspec.Struct):
        value = {name: inner for name, inner in msgspec.structs.asdict(value).items() if inner}
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_format_toml(k)} = {_format_toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_format_toml, value)) + "]"
    return msgspec.json.encode(value).decode()


def _masked(value: object) -> object:
    """A secret with only its shape left: how many there are, and the names of those that have one."""
    if isinstance(value, dict):
        return dict.fromkeys(value, MASK)
    return [MASK] * len(value) if isinstance(value, list) else MASK


def render_toml(settings: Settings) -> str:
    """The settings as a commented TOML file, one a line with unit and meaning; secrets are masked."""
    lines: list[str] = ["# postbackd: every setting with its value. Durations are seconds, sizes bytes."]
    if any(declaration.secret and _value_of(settings, declaration) for declaration in declarations()):
        lines.append(f'# Secrets are masked as "{MASK}", which is refused in a file: put them in.')
    section = ""
    for declaration in declarations():
        if declaration.section != section:
            section = declaration.section
            lines += ["", f"[{section}]"]
        value = _value_of(settings, declaration)
        shown = _format_toml(_masked(value) if declaration.secret and value else value)
        unit = f" [{declaration.unit}]" if declaration.unit else ""
        choices = f": {' | '.join(declaration.choices)}" if declaration.choices else ""
        lines.append(f"{declaration.name} = {shown}  # {declaration.text}{unit}{choices}")
    for name, host in settings.hosts.items():
        lines += ["", f"[hosts.{_format_toml(name)}]"]
        lines += [f"{key} = {_format_toml(value)}" for key, value in msgspec.structs.asdict(host).items() if value]
    return "\n".join(lines) + "\n"
