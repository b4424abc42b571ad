"""A Ray Serve on this machine that takes configurations as KubeRay gives them: `python -m changing_service PORT`.

Enters: a line of JSON on stdin for each, an operator's serveConfigV2. Leaves: a line on stdout once Serve has started,
and after each that it was told. It ends with its stdin.
"""

import json
import sys

import ray
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import LoggingConfig, ServeDeploySchema

from plinth_workloads.serve import _stop


def tell() -> None:
    sys.stdout.write("told\n")
    sys.stdout.flush()


def main() -> None:
    ray.init(address="local", include_dashboard=False, num_cpus=1, object_store_memory=100_000_000, log_to_driver=False)
    serve.start(
        http_options={"host": "127.0.0.1", "port": int(sys.argv[1])}, logging_config=LoggingConfig(log_level="WARNING")
    )
    tell()
    # What Serve's REST API calls, which needs Ray's dashboard; serve.run would replace the replicas each time.
    client = _get_global_client()
    assert client is not None
    for line in sys.stdin:
        client.deploy_apps(ServeDeploySchema.model_validate(json.loads(line)))
        tell()
    _stop()


if __name__ == "__main__":
    main()
