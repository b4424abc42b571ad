"""When a replica's memory is searched for garbage: where a version has come or gone, and never all of it in between.

Python's collector now and then goes through all that has lived for long: half a million objects of torch, transformers
and the model, a third of a second in which no thread makes a token. Nearly all of it lives as long as the process.
"""

import gc


def collect_and_freeze() -> None:
    """Give back what nobody holds, cycles and what was frozen before included, and pass over what is left from now on.

    See https://docs.python.org/3/library/gc.html#gc.freeze.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
