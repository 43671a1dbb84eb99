"""An encoder as plain data, its class and the arguments of its constructor, from which it is built again."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from torch import nn

from pc3d.models.object_encoder import ObjectEncoder

_OWN = "pc3d."


def describe(encoder: nn.Module) -> dict[str, Any]:
    """``class`` and ``arguments`` of an encoder, which keeps the latter as ``config``.

    A class of pc3d goes by its name alone, another by where it is imported from, as ``my_encoders.GraphEncoder``.
    """
    kind = type(encoder)
    name = kind.__name__ if kind.__module__.startswith(_OWN) else f"{kind.__module__}.{kind.__qualname__}"
    return {"class": name, "arguments": getattr(encoder, "config", {})}


def check_described(encoder: nn.Module) -> None:
    """Refuse an encoder of a class outside of pc3d that could not be built from what :func:`describe` says.

    Raises:
        TypeError: its class cannot be imported by its name, its ``encode`` takes no ``pooling``, or ``config`` does not
            hold exactly the constructor's arguments, as plain data.
    """
    kind = type(encoder)
    named = f"{kind.__module__}.{kind.__qualname__}"
    if kind.__module__ == "__main__" or getattr(sys.modules.get(kind.__module__), kind.__qualname__, None) is not kind:
        raise TypeError(
            f"the encoder's class {named} cannot be imported by that name when its weights are loaded: define it at "
            "the top of a file of its own, as my_encoders.py, and import it from there"
        )
    # What encoders of scenes call encode gives levels of voxels, which are not pooled.
    if isinstance(encoder, ObjectEncoder) and not _takes_pooling(encoder):
        raise TypeError(
            f"encode of {named} must take pooling, which whatever judges an encoder passes on: def encode(self, xyz, "
            'pooling="max"), as pc3d.models.ObjectEncoder says; it may leave it unused'
        )
    config = getattr(encoder, "config", None)
    if not isinstance(config, Mapping):
        raise TypeError(
            f"{named} does not say how it was built, so its weights could not be loaded: set self.config in its "
            f"constructor, as {{{', '.join(f'{name!r}: {name}' for name in _parameters(kind))}}}"
        )
    parameters, any_name = _parameters(kind), _takes_any_name(kind)
    lacking = [name for name in parameters if name not in config]
    unknown = [] if any_name else [name for name in config if name not in parameters]
    if lacking or unknown:
        raise TypeError(
            f"self.config of {named} must hold the arguments of its constructor ({', '.join(parameters) or 'none'})"
            + (f"; it lacks {', '.join(lacking)}" if lacking else "")
            + (f"; {', '.join(map(str, unknown))} are none of them" if unknown else "")
        )
    for name, value in config.items():
        try:
            json.dumps(value, allow_nan=False)
            _check_keys(value)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"self.config of {named} must be plain data, numbers, texts, lists and dictionaries of them; "
                f"{name}={value!r} is not: {error}"
            ) from error


def imported_class(name: str) -> type[nn.Module]:
    """The class that :func:`describe` named by where it is imported from.

    Raises:
        ValueError: there is no such module here, or no network of that name in it.
    """
    module, _, attribute = name.rpartition(".")
    # Modules like __main__ are programs, which run when they are imported.
    if not all(part.isidentifier() and not part.startswith("__") for part in name.split(".")):
        raise ValueError(f"the class {name!r} is none of pc3d, and no name of a class in a module")
    try:
        found = getattr(import_module(module), attribute, None)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"the class {name} is none of pc3d, and {error.name} cannot be imported here: install what it is in, or "
            f"put the folder of {module.split('.')[0]} on PYTHONPATH"
        ) from error
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ValueError(f"the class {name} is none of pc3d, and {module} has no network of that name here")
    return found


def _check_keys(value: Any) -> None:
    """Raises TypeError for a dictionary with other keys than texts, which JSON would turn into some."""
    if isinstance(value, dict):
        odd = [key for key in value if not isinstance(key, str)]
        if odd:
            raise TypeError(f"the key {odd[0]!r} of a dictionary is no text")
    if isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            _check_keys(item)


def _parameters(kind: type[nn.Module]) -> list[str]:
    return [
        name
        for name, parameter in inspect.signature(kind).parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]


def _takes_pooling(encoder: ObjectEncoder) -> bool:
    parameters = inspect.signature(encoder.encode).parameters
    return "pooling" in parameters or any(one.kind == one.VAR_KEYWORD for one in parameters.values())


def _takes_any_name(kind: type[nn.Module]) -> bool:
    return any(parameter.kind == parameter.VAR_KEYWORD for parameter in inspect.signature(kind).parameters.values())
