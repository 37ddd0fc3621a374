"""Arguments that stand once: a dataclass is the signature of the functions and classes that take it.

A callable that takes thirty-five options is written with one parameter, an instance of the dataclass:

    @arguments_of(RecorderOptions)
    def __init__(self, options: RecorderOptions) -> None: ...

and called with the dataclass's own arguments. Of the ways to say so this is the one in which every reader
sees the whole signature: type checkers and editors take it from the dataclass (a `ParamSpec` of its
constructor: names, kinds, types and defaults, where `**options: Unpack[TypedDict]` would need every name a
second time and shows no default); `help`, `inspect.signature`, IPython and jsonargparse take it from
`__signature__`, and the arguments' descriptions from the dataclass's docstring.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, get_type_hints, overload

P = ParamSpec("P")
Given = TypeVar("Given")
Owner = TypeVar("Owner")
Made = TypeVar("Made")


class arguments_of(Generic[P, Given]):  # noqa: N801 - reads as a decorator
    """Makes a function or method of one argument callable with the arguments of that argument's dataclass.

    Args:
        kind: the dataclass.

    Examples:
        >>> from dataclasses import dataclass
        >>> @dataclass
        ... class Size:
        ...     width: int
        ...     height: int = 2
        >>> @arguments_of(Size)
        ... def area(size: Size) -> int:
        ...     return size.width * size.height
        >>> area(3), str(inspect.signature(area))
        (6, '(width: int, height: int = 2) -> int')
    """

    def __init__(self, kind: Callable[P, Given]) -> None:
        self._kind = kind

    @overload
    def __call__(self, function: Callable[[Given], Made]) -> Callable[P, Made]: ...
    @overload
    def __call__(self, function: Callable[[Owner, Given], Made]) -> Callable[Concatenate[Owner, P], Made]: ...

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, called otherwise."""
        kind = self._kind
        given = inspect.signature(kind)
        owner = list(inspect.signature(function).parameters.values())[:-1]
        hints = get_type_hints(kind)
        parameters = [p.replace(annotation=hints.get(p.name, Any)) for p in given.parameters.values()]
        returned = get_type_hints(function).get("return", Any)
        returned = None if returned is type(None) else returned

        def call(*args: Any, **kwargs: Any) -> Any:
            before = len(owner)
            try:
                given.bind(*args[before:], **kwargs)
            except TypeError as error:
                raise TypeError(f"{function.__qualname__}: {error}") from None
            return function(*args[:before], kind(*args[before:], **kwargs))

        for name in ("__name__", "__qualname__", "__module__"):
            setattr(call, name, getattr(function, name))
        call.__doc__ = function.__doc__ or kind.__doc__
        call.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": returned}
        call.__signature__ = inspect.Signature([*owner, *parameters], return_annotation=returned)  # type: ignore[attr-defined]
        return call
