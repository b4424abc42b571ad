"""How a version answers: requests, errors and times, summed up so that those of all replicas can be added.

Enters: the end of each request, and when its text came. Leaves: counts of one version. Apart from metrics.py, which
counts for Prometheus and knows no versions: these begin anew with every share of the requests that a version gets.
"""

from dataclasses import dataclass, field

from plinth_api.service_state import Samples, VersionCounts


@dataclass
class Counter:
    """What one version has done."""

    requests: int = 0
    errors: int = 0
    first_token: Samples = field(default_factory=Samples)
    output_token: Samples = field(default_factory=Samples)
    running: int = 0

    def told(self) -> VersionCounts:
        """As the operator reads it."""
        return VersionCounts(
            requests=self.requests,
            errors=self.errors,
            first_token=self.first_token,
            output_token=self.output_token,
            running=self.running,
        )


class Turn:
    """One request, on its way to whichever version it falls to, and how it went there."""

    def __init__(self) -> None:
        self._counter: Counter | None = None
        self._has_text = False

    def falls_to(self, counter: Counter) -> None:
        """Count it for the version that answers it; nobody counts one that is never told so."""
        self._counter = counter
        counter.running += 1

    def first_text(self, seconds: float) -> None:
        """The first text of a choice came so long after the request."""
        if self._counter is not None and not self._has_text:
            self._has_text = True
            self._counter.first_token += Samples.of(seconds)

    def later_tokens(self, seconds_each: float) -> None:
        """The rest of a choice came, at this pace."""
        if self._counter is not None:
            self._counter.output_token += Samples.of(seconds_each)

    def ended(self) -> None:
        """The answer is whole."""
        if self._counter is not None:
            self._counter.requests += 1
            self._counter.running -= 1

    def failed(self) -> None:
        """The answer ended for a reason of ours."""
        self.ended()
        if self._counter is not None:
            self._counter.errors += 1

    def given_up(self, seconds: float) -> None:
        """The client went away after this time; one who has seen no text has waited for it at least so long."""
        self.first_text(seconds)
        self.ended()
