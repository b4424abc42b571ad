"""The batches of the next step are made while this one trains, in page-locked memory where a GPU reads them."""

from concurrent.futures import Future, ThreadPoolExecutor

from plinth_workloads.data.loader import Batch, BatchLoader


class PrefetchingLoader:
    """A loader that is one step ahead of whom it serves.

    Its position is that of the steps that were handed out: what lies ready is read again by a run that goes on.
    """

    def __init__(self, loader: BatchLoader, *, pin_memory: bool) -> None:
        """Begin at the loader's position.

        Args:
            loader: Nobody else may use it from now on.
            pin_memory: Whether a copy to a GPU is to go on beside the computation, which takes page-locked memory.
        """
        self._loader, self._pin_memory = loader, pin_memory
        self._position = loader.state_dict()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="plinth-loader")
        self._ahead: Future[tuple[list[Batch], dict[str, int]]] | None = None

    def next_step(self) -> list[Batch]:
        """This process's micro batches of the next optimizer step; an error in making them is raised here."""
        ahead = self._ahead or self._thread.submit(self._read)
        batches, self._position = ahead.result()
        self._ahead = self._thread.submit(self._read)
        return batches

    def skip_steps(self, count: int) -> None:
        """Move past the rows of the next optimizer steps."""
        self.load_state_dict(self._position)
        self._loader.skip_steps(count)
        self._position = self._loader.state_dict()

    def state_dict(self) -> dict[str, int]:
        """The position after the last step that was handed out, as JSON types."""
        return dict(self._position)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a position; what lies ready is forgotten."""
        if self._ahead is not None:
            # It moves the loader, which must not happen after this; its error belongs to a step that is not wanted.
            self._ahead.exception()
            self._ahead = None
        self._loader.load_state_dict(state)
        self._position = self._loader.state_dict()

    def _read(self) -> tuple[list[Batch], dict[str, int]]:
        batches = self._loader.next_step()
        if self._pin_memory:
            batches = [batch.pin_memory() for batch in batches]
        return batches, self._loader.state_dict()
