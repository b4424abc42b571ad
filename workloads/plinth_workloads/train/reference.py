"""What the model says of every answer before it is trained, for a loss that compares with that.

One forward pass over the data, shared by the workers, before the first step of a run; a later attempt finds it on disk,
or computes it again from the same weights, since checkpoints are loaded after this. So there is no second copy of the
model at any time, nor a second forward pass in a step, by whichever method the run trains (docs/adr/0018).
"""

import numpy as np
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

from plinth_api.resolve import micro_batch_size
from plinth_api.run import TrainRun
from plinth_workloads.data.packing import Segment
from plinth_workloads.data.prepare import PreparedData
from plinth_workloads.data.reference import FloatArray, reference_path, write_reference
from plinth_workloads.data.token_store import TokenStore
from plinth_workloads.models.modes import in_evaluation
from plinth_workloads.models.virtual_tokens import without_virtual_tokens
from plinth_workloads.objectives.preference import DPOLoss
from plinth_workloads.train.parallel import Workers, autocast
from plinth_workloads.train.pulse import Pulse


def keep_reference(run: TrainRun, loss: object, data: PreparedData, workers: Workers, pulse: Pulse) -> None:
    """Write the reference of all documents, unless it is there; every process calls this.

    Args:
        run: The run document.
        loss: On its device, sharded where the run shards, around a model that is not trained yet. New adapters change
            nothing, virtual tokens do and are left out. A loss that compares with nothing is passed over.
        data: The documents.
        workers: The processes.
        pulse: Where every batch is marked.
    """
    if not isinstance(loss, DPOLoss):
        return
    if isinstance(loss, FSDPModule):
        register_fsdp_forward_method(loss, "log_probs")
    stores = [data.store, *([data.validation_store] if data.validation_store not in (None, data.store) else [])]
    for store in stores:
        assert store is not None
        path = reference_path(run, store)
        # A worker with a disk of its own may lack what another has, and all have to take part.
        if workers.sum(not path.exists())[0] > 0:
            log_probs_N2 = _log_probs(run, loss, data, store, workers, pulse)
            if not path.exists():
                write_reference(path, log_probs_N2)
    if isinstance(loss, FSDPModule):
        # The root keeps its weights whole after a forward pass, and optimizers are to be built over its shards.
        loss.reshard()
    workers.barrier()


def _log_probs(
    run: TrainRun, loss: DPOLoss, data: PreparedData, store: TokenStore, workers: Workers, pulse: Pulse
) -> FloatArray:
    rows = data.recipe.batcher(data.tokenizer, store, np.arange(store.num_documents))
    # Documents of one length share a batch, which then has little padding.
    order = np.argsort(store.lengths, kind="stable")
    # Where the rows of a pass are still to be found, there are as many as a step has.
    size = micro_batch_size(run.training.micro_batch_size, 2 * run.training.sequence_length)
    log_probs_N2 = np.zeros((store.num_documents, 2), np.float32)
    with in_evaluation(loss), without_virtual_tokens(loss.model):
        for start in pulse.each("asking the reference model", range(0, len(order), size * workers.world_size)):
            mine = order[start + workers.rank * size :][:size]
            segments = [[Segment(int(document), 0, int(store.lengths[document]))] for document in mine] or [[]]
            inputs = rows.batch(segments, [(1, 0, 0)] * len(segments)).to(workers.device).inputs
            with autocast(run, workers):
                found_R = loss.log_probs(inputs["input_ids_RT"], inputs["position_ids_RT"], inputs["labels_RT"])
            log_probs_N2[mine] = found_R.float().cpu().numpy().reshape(2, -1).T[: len(mine)]
    return np.sum(workers.gather(log_probs_N2), axis=0)
