import io

from rich.console import Console

from makers import pretrain_document
from plinth_api.parse import parse_resource
from plinth_workloads.presentation import JobProgress


def test_a_damaged_checkpoint_is_shown():
    shown = io.StringIO()
    progress = JobProgress(parse_resource(pretrain_document()), Console(file=shown, width=200))
    progress.follow({"event": "checkpointDamaged", "step": 40, "message": "shard-00001.safetensors is missing"})
    assert shown.getvalue() == "tiny: the checkpoint of step 40 is damaged: shard-00001.safetensors is missing\n"


def test_memory_and_the_rows_of_a_pass_are_shown():
    shown = io.StringIO()
    progress = JobProgress(parse_resource(pretrain_document()), Console(file=shown, width=200))
    progress.follow({"event": "memory", "needed": 3 * 2**29, "room": 2**31})
    progress.follow({"event": "microBatchSize", "rows": 4})
    assert shown.getvalue() == "tiny: needs about 1.50 of 2.00 GiB a worker\ntiny: passes of 4 rows are best here\n"
