"""The local runner without its processes: what it writes for them."""

from makers import make_model_service
from plinth_api.run import ServeRun
from plinth_workloads.local import Home, serve_document


def test_a_service_is_told_where_the_claims_of_this_machine_are(tmp_path):
    path = serve_document(make_model_service(model={"uri": "pvc://models/chat"}), Home(tmp_path))
    run = ServeRun.model_validate_json(path.read_bytes())
    assert run.model.uri == f"file://{tmp_path}/volumes/models/chat"
    assert path.is_relative_to(run.work_dir)
