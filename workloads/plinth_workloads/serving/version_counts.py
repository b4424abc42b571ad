"""How a version answers: requests, errors and times, summed up so that those of all replicas can be added.

Enters: the end of each request, and when its text came. Leaves: counts of one version. Apart from metrics.py, which
counts for Prometheus and knows no versions: these begin anew with every share of the requests that a version gets.
"""

from dataclasses import dataclass, field

from plinth_api.service_state import Samples, VersionCounts


@dataclass
class Times:
    """Sums of times in seconds."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, seconds: float) -> None:
        """Take one more into account."""
        self.count += 1
        self.total += seconds
        self.squares += seconds * seconds

    def told(self) -> Samples:
        """As the operator reads it."""
        return Samples(count=self.count, total=self.total, squares=self.squares)


@dataclass
class Counter:
    """What one version has done."""

    requests: int = 0
    errors: int = 0
    first_token: Times = field(default_factory=Times)
    output_token: Times = field(default_factory=Times)

    def told(self) -> VersionCounts:
        """As the operator reads it."""
        return VersionCounts(
            requests=self.requests,
            errors=self.errors,
            first_token=self.first_token.told(),
            output_token=self.output_token.told(),
        )


class Turn:
    """One request, on its way to whichever version it falls to, and how it went there.

    Attributes:
        counter: Of that version; None before there is one, and where nobody counts.
    """

    def __init__(self) -> None:
        self.counter: Counter | None = None
        self._has_text = False

    def first_text(self, seconds: float) -> None:
        """The first text of a choice came so long after the request."""
        if self.counter is not None and not self._has_text:
            self._has_text = True
            self.counter.first_token.add(seconds)

    def later_tokens(self, seconds_each: float) -> None:
        """The rest of a choice came, at this pace."""
        if self.counter is not None:
            self.counter.output_token.add(seconds_each)

    def ended(self) -> None:
        """The answer is whole."""
        if self.counter is not None:
            self.counter.requests += 1

    def failed(self) -> None:
        """The answer ended for a reason of ours."""
        self.ended()
        if self.counter is not None:
            self.counter.errors += 1

    def given_up(self, seconds: float) -> None:
        """The client went away after this time; one who has seen no text has waited for it at least so long."""
        self.first_text(seconds)
        self.ended()
