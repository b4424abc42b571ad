"""By which names clients ask: the service, its adapters, and each of them with the alias that it follows.

Enters: what a request names as its model. Leaves: whose name that is. Knows neither the versions nor the engine.
"""

from collections.abc import Iterable, Mapping

from plinth_workloads.serving.api_errors import unknown_model


class ServedNames:
    """The names of one service. Those of adapters are given with each question, as adapters come and go.

    Attributes:
        base: The service, whose model answers.
        aliases: Of the registry, by name of the service or the adapter that follows it; may be set at any time.
    """

    def __init__(self, base: str, aliases: Mapping[str, str] | None = None) -> None:
        self.base = base
        self.aliases: Mapping[str, str] = aliases or {}

    def with_alias(self, name: str) -> str | None:
        """The other name of the service or an adapter, as MLflow spells it: name@alias; None where it has none."""
        return f"{name}@{self.aliases[name]}" if name in self.aliases else None

    def own_name(self, asked: object, adapters: Iterable[str] = ()) -> str:
        """The name of the service or the adapter that `asked` stands for.

        Raises:
            ApiError: It stands for none; the answer has all names that there are.
        """
        own = (self.base, *adapters)
        if asked in own:
            return str(asked)
        others = [(other, name) for name in own if (other := self.with_alias(name)) is not None]
        for other, name in others:
            if asked == other:
                return name
        raise unknown_model(str(asked), *own, *(other for other, _ in others))
