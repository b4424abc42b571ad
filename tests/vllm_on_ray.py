"""A service of vLLM on a local Ray, as KubeRay deploys it: configurations of Serve enter by stdin, a line each.

For a process of its own, whose environment Ray reads before it is imported. A line on stdout says what became of each
configuration: the status of the application, and its message.
"""

import json
import sys
import time
from typing import Any

import ray
from ray import serve
from ray.serve.schema import ServeDeploySchema

APPLICATION = "plinth"


def deploy(config: dict[str, Any]) -> dict[str, str]:
    """Give Serve a configuration, and wait until it runs or cannot."""
    from ray.serve.context import _get_global_client

    client = _get_global_client()
    assert client is not None
    client.deploy_apps(ServeDeploySchema.model_validate(config))
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        time.sleep(0.2)
        application = serve.status().applications[APPLICATION]
        if application.status in ("RUNNING", "DEPLOY_FAILED"):
            return {"status": application.status, "message": _words(application)}
    return {"status": str(application.status), "message": _words(application)}


def _words(application: Any) -> str:
    return "\n".join([application.message, *(one.message for one in application.deployments.values())])


def main() -> None:
    """Deploy each configuration that comes, until stdin ends."""
    port = int(sys.argv[1])
    # One logical GPU a replica; two replicas are there at once while a version is replaced.
    ray.init(address="local", num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    for line in sys.stdin:
        sys.stdout.write(json.dumps(deploy(json.loads(line))) + "\n")
        sys.stdout.flush()
    shut_down: Any = serve.shutdown
    shut_down()
    ray.shutdown()


if __name__ == "__main__":
    main()
