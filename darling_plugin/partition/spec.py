"""A partition model's spec, "name:argument?option=value": what it names, checked, and built."""

from __future__ import annotations

import inspect
from typing import Any

from darling_plugin.errors import DarlingError, spelled
from darling_plugin.partition.base import PartitionModel
from darling_plugin.partition.options import check_options, read_option
from darling_plugin.registry import partition_models
from darling_plugin.user_code import import_user_code


def load_partition_model(spec: str, **options: Any) -> PartitionModel:
    """Builds the partition model that `spec` names.

    Args:
        spec: a registered name ("lexical"); a registered name with its argument ("cross-encoder:/models/x",
            "embedding:org/name"); or a class of your own, "package.module:Class" or "path/to/file.py:Class".
            Registered names win. Keyword arguments of the class may follow as a query, read by the annotations of
            `__init__` (options.read_option): "cross-encoder:/models/x?max_length=4096&both_orders=true".
        options: more keyword arguments, such as threshold; those that are None are left out.

    Returns:
        cls(argument, **options) where the spec has an argument, else cls(**options).

    Raises DarlingError, before anything is built, for names and values that the class does not take.
    """
    cls, arguments, options = _resolve(spec, options)
    return cls(*arguments, **options)


def check_partition_spec(spec: str, **options: Any) -> type[PartitionModel]:
    """The class that `spec` names, after every check that :func:`load_partition_model` makes; nothing is built.

    Imports a user's file or module, and by itself nothing heavier.
    """
    return _resolve(spec, options)[0]


def _resolve(spec: str, options: dict[str, Any]) -> tuple[type[PartitionModel], tuple[Any, ...], dict[str, Any]]:
    whole, (spec, _, query) = spec, spec.partition("?")
    options = {option: value for option, value in options.items() if value is not None}
    texts = _query_options(whole, query, taken=options)
    name, _, argument = spec.partition(":")
    source, _, class_name = spec.rpartition(":")
    if name in partition_models or not _names_user_class(source, class_name):
        cls, arguments = partition_models.get(name), (argument,) if argument else ()
    else:
        cls, arguments = _user_class(source, class_name), ()
    _check_class(cls, spec)
    _check_names(cls, arguments, options | texts)
    options |= {option: read_option(cls, option, text) for option, text in texts.items()}
    first = next(iter(inspect.signature(cls).parameters), "")
    arguments = tuple(read_option(cls, first, text, untyped=str) for text in arguments)
    check_options(cls, **dict(zip([first], arguments, strict=False)), **options)
    cls.check_arguments(*arguments, **options)
    return cls, arguments, options


def _query_options(spec: str, query: str, taken: dict[str, Any]) -> dict[str, str]:
    options: dict[str, str] = {}
    for part in query.split("&") if query else []:
        option, equals, text = part.partition("=")
        if not (equals and text and option.isidentifier()) or option in options or option in taken:
            raise DarlingError(
                "options in a partition model's query as option=value&option=value, each given once",
                f"{part!r} in {spec!r}",
                f"correct it; what {spelled('threshold')} or {spelled('clustering')} sets is not given here too",
            )
        options[option] = text
    return options


def _names_user_class(source: str, class_name: str) -> bool:
    is_module = all(part.isidentifier() for part in source.split("."))
    return class_name.isidentifier() and (source.endswith(".py") or is_module)


def _user_class(source: str, class_name: str) -> type:
    try:
        module = import_user_code(source)
    except DarlingError as error:
        needed, found, do = error.args
        known = ", ".join(partition_models.names())
        raise DarlingError(needed, found, f"{do}; or use a registered partition model: {known}") from error
    if not hasattr(module, class_name):
        there = [
            key
            for key, value in vars(module).items()
            if _is_partition_model(value) and value.__module__ == module.__name__
        ]
        raise DarlingError(
            f"a class {class_name!r} in {source}",
            f"no such name; partition models defined there: {', '.join(there) or 'none'}",
            "correct the name after the colon",
        )
    return getattr(module, class_name)


def _is_partition_model(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, PartitionModel)


def _check_class(cls: Any, spec: str) -> None:
    if not _is_partition_model(cls):
        raise DarlingError(
            f"a subclass of darling_plugin.partition.PartitionModel for {spec!r}",
            f"{cls!r}",
            "derive it from PartitionModel, PairwiseModel or EmbeddingModel",
        )
    if inspect.isabstract(cls):
        raise DarlingError(
            f"a complete partition model for {spec!r}",
            f"{cls.__name__} lacks {', '.join(sorted(cls.__abstractmethods__))}",
            "implement it",
        )


def _check_names(cls: type[PartitionModel], arguments: tuple[str, ...], options: dict[str, Any]) -> None:
    signature = inspect.signature(cls)
    parameters = signature.parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        for option in options:
            if option not in parameters:
                raise DarlingError(
                    f"options that {cls.__name__} takes: {', '.join(parameters) or 'none'}",
                    f"{option}={options[option]}",
                    f"drop {spelled(option)}, or {option} in the query, or let {cls.__name__}.__init__ take it",
                )
    try:
        signature.bind(*arguments, **options)
    except TypeError as error:
        raise DarlingError(
            f"arguments that fit {cls.__name__}{signature}",
            f"{error}, given {arguments} and {options}",
            "an argument is given after the name and a colon, as in cross-encoder:/models/x",
        ) from error
