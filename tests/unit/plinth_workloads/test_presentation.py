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
