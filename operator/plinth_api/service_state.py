"""What a replica of a service tells at GET /-/state: written by the workload, read by the operator."""

from plinth_api.base import StatusModel

STATE_PATH = "/-/state"


class AdapterState(StatusModel):
    """One adapter that is wanted beside the model.

    Attributes:
        name: By which clients ask for it.
        uri: The version in service; None while there is none.
        target_uri: The version that is wanted.
        load_error: Why that is not in service.
    """

    name: str = ""
    uri: str | None = None
    target_uri: str = ""
    load_error: str | None = None


class Samples(StatusModel):
    """Times in seconds, as sums: those of all replicas are added up."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, seconds: float) -> "Samples":
        """A single time."""
        return cls(count=1, total=seconds, squares=seconds * seconds)

    def __add__(self, other: "Samples") -> "Samples":
        return Samples(
            count=self.count + other.count, total=self.total + other.total, squares=self.squares + other.squares
        )


class VersionCounts(StatusModel):
    """How one version has answered requests for the base model.

    Attributes:
        requests: Those that ended, also because their clients went away.
        errors: Those of them that ended for a reason of ours (5xx, timeouts among them).
        first_token: From each request to its first text, to the whole answer where that is no text, or until its client
            went away without any.
        output_token: The mean time of a choice's tokens after that.
        running: Requests that have not ended yet.
    """

    requests: int = 0
    errors: int = 0
    first_token: Samples = Samples()
    output_token: Samples = Samples()
    running: int = 0

    def __add__(self, other: "VersionCounts") -> "VersionCounts":
        return VersionCounts(
            requests=self.requests + other.requests,
            errors=self.errors + other.errors,
            first_token=self.first_token + other.first_token,
            output_token=self.output_token + other.output_token,
            running=self.running + other.running,
        )


class CandidateState(StatusModel):
    """A version that is tried on a share of the requests beside the one in service.

    Attributes:
        uri: The version.
        weight: Its share in percent.
        loaded: Whether it takes requests.
        load_error: Why it does not.
        failed: Whether waiting for it is in vain.
        seconds: How long it has taken this share here; counts are of this time.
        stable: What the version in service did with the other requests meanwhile.
        candidate: What it did itself.
    """

    uri: str = ""
    weight: int = 0
    loaded: bool = False
    load_error: str | None = None
    failed: bool = False
    seconds: float = 0.0
    stable: VersionCounts = VersionCounts()
    candidate: VersionCounts = VersionCounts()


class LoadState(StatusModel):
    """How far the loading of a version is.

    Attributes:
        phase: fetching, loading or warmingUp.
        done_bytes: Of the files that are fetched.
        total_bytes: Of all of them; 0 while that is not known.
    """

    phase: str = ""
    done_bytes: int = 0
    total_bytes: int = 0


class ServiceState(StatusModel):
    """One replica; counts are since it started. In wire form what is None is left out.

    Attributes:
        name: By which clients ask for the model.
        replica_id: Which replica this is; another one after each start.
        model_uri: The version in service.
        target_uri: The version that is wanted.
        loaded: Whether a version is in service.
        load_error: Why the wanted version is not in service.
        held: What requests wait for at the moment; None while they do not.
        candidate: The version that is tried beside it, if any.
        loading: How far its loading is; None while nothing is loaded.
        adapters: Those that are wanted.
        prompt_hash: Which beginning of chats is in service; empty for none.
        api_keys: How many keys are accepted; None where none is asked for.
        context_length: Tokens of prompt and answer together.
        running: Requests that tokens are made for.
        waiting: Requests that wait for a place.
        requests: Requests so far.
        errors: Requests that ended for a reason of ours (5xx).
        tokens: Tokens made.
    """

    name: str = ""
    replica_id: str = ""
    model_uri: str | None = None
    target_uri: str = ""
    loaded: bool = False
    load_error: str | None = None
    held: str | None = None
    candidate: CandidateState | None = None
    loading: LoadState | None = None
    adapters: tuple[AdapterState, ...] = ()
    prompt_hash: str = ""
    api_keys: int | None = None
    context_length: int | None = None
    running: int = 0
    waiting: int = 0
    requests: int = 0
    errors: int = 0
    tokens: int = 0
