"""The `plinth` command: run jobs and services from their YAML on this machine, check files, write the CRDs.

Exit codes: 0 done, 1 failed, 2 the input is wrong.
"""

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from plinth_api.model_service import ModelService
from plinth_api.support import cluster_only_fields
from plinth_workloads.errors import UserError
from plinth_workloads.local import Home, JobResult, read_events, run_job, serve_document, start_workload
from plinth_workloads.manifests import InvalidManifest, Manifest, load_manifests
from plinth_workloads.presentation import JobProgress, print_summary
from plinth_workloads.validation import problems_of

OK, FAILED, BAD_INPUT = 0, 1, 2


def main() -> int:
    """Run the command; the process's exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    arguments = _parser().parse_args()
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        code: int = arguments.command(arguments, console)
    except InvalidManifest as error:
        for line in error.lines:
            console.print(line, markup=False, style="red")
        return BAD_INPUT
    except UserError as error:
        console.print(f"{error.reason}: {error.message}", markup=False, style="red")
        return BAD_INPUT if error.reason == "InvalidSpec" else FAILED
    except KeyboardInterrupt:
        return FAILED
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="plinth", description="Train, adapt and serve foundation models from YAML.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="run jobs in order on this machine, then start services")
    run.add_argument("files", nargs="+", type=Path, metavar="FILE")
    run.add_argument("--again", action="store_true", help="run a finished job once more")
    serve = commands.add_parser("serve", help="serve a ModelService on this machine until Ctrl-C")
    serve.add_argument("files", nargs=1, type=Path, metavar="FILE")
    for command in (run, serve):
        _add_home(command)
        command.add_argument("--host", default="127.0.0.1", help="address for services (default %(default)s)")
        command.add_argument("--port", type=int, default=8000, help="port of the first service (default %(default)s)")
    validate = commands.add_parser("validate", help="check files without running anything")
    validate.add_argument("files", nargs="+", type=Path, metavar="FILE")
    export = commands.add_parser("export-crds", help="write the CustomResourceDefinitions")
    export.add_argument("folder", type=Path, metavar="FOLDER")
    ui = commands.add_parser("ui", help="open the MLflow page of local runs until Ctrl-C")
    _add_home(ui)
    ui.add_argument("--port", type=int, default=5000, help="port of the page (default %(default)s)")
    for command, function in ((run, _run), (serve, _serve), (validate, _validate), (export, _export_crds), (ui, _ui)):
        command.set_defaults(command=function)
    return parser


def _add_home(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--home",
        type=lambda text: Path(text).resolve(),
        default=Path(os.environ.get("PLINTH_HOME", ".plinth")).resolve(),
        help="folder for volumes, runs and the local MLflow (default $PLINTH_HOME, else .plinth)",
    )


def _validated(files: list[Path]) -> list[Manifest]:
    manifests = load_manifests(files)
    problems = [f"{m.path}: {problem}" for m in manifests for problem in problems_of(m.resource)]
    if problems:
        raise InvalidManifest(problems)
    return manifests


def _validate(arguments: argparse.Namespace, console: Console) -> int:
    for manifest in _validated(arguments.files):
        resource = manifest.resource
        console.print(f"{manifest.path}: {resource.kind} {resource.metadata.name} is valid", markup=False)
    return OK


def _run(arguments: argparse.Namespace, console: Console) -> int:
    manifests = _validated(arguments.files)
    home = Home(arguments.home)
    results: list[JobResult] = []
    services = [m.resource for m in manifests if isinstance(m.resource, ModelService)]
    for manifest in manifests:
        if isinstance(manifest.resource, ModelService):
            continue
        _say_what_is_passed_over(manifest, console)
        with JobProgress(manifest.resource, console) as progress:
            results.append(run_job(manifest.resource, home, again=arguments.again, follow=progress.follow))
        if results[-1].outcome != "succeeded":
            break
    if results:
        print_summary(results, home, console)
    if any(result.outcome != "succeeded" for result in results):
        return BAD_INPUT if results[-1].reason == "InvalidSpec" else FAILED
    return _serve_all(services, home, arguments, console)


def _serve(arguments: argparse.Namespace, console: Console) -> int:
    manifests = _validated(arguments.files)
    jobs = [m for m in manifests if not isinstance(m.resource, ModelService)]
    if jobs:
        raise InvalidManifest([f"{m.path}: is a {m.resource.kind}; run it with plinth run" for m in jobs])
    services = [m.resource for m in manifests if isinstance(m.resource, ModelService)]
    return _serve_all(services, Home(arguments.home), arguments, console)


def _serve_all(services: list[ModelService], home: Home, arguments: argparse.Namespace, console: Console) -> int:
    """Start every service on a port of its own and wait for Ctrl-C or the end of one."""
    processes: list[subprocess.Popen[bytes]] = []
    interrupted = False
    try:
        for index, service in enumerate(services):
            document = serve_document(service, home)
            console.print(f"{service.metadata.name}: starting", markup=False)
            process, event = _start_service(document, arguments.host, arguments.port + index)
            processes.append(process)
            if event.get("event") != "ready":
                message = event.get("message", "the serving process ended")
                console.print(
                    f"{service.metadata.name}: {event.get('reason', 'Failed')}: {message}", style="red", markup=False
                )
                console.print(f"log: {document.parent / 'serve.log'}", markup=False)
                return process.wait() or FAILED
            sys.stdout.write(f"{service.metadata.name}: ready at {event['url']}\n")
            sys.stdout.flush()
        if processes:
            os.waitid(os.P_PID, processes[0].pid, os.WEXITED | os.WNOWAIT)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
    return OK if interrupted or not processes else FAILED


def _start_service(document: Path, host: str, port: int) -> tuple[subprocess.Popen[bytes], dict[str, Any]]:
    command = [sys.executable, "-m", "plinth_workloads.serve", str(document), "--host", host, "--port", str(port)]
    with (document.parent / "serve.log").open("ab") as log:
        process = start_workload(command, stdout=subprocess.PIPE, stderr=log)
    assert process.stdout is not None
    return process, next(read_events(process.stdout), {})


def _say_what_is_passed_over(manifest: Manifest, console: Console) -> None:
    passed_over = cluster_only_fields(manifest.resource)
    if passed_over:
        console.print(f"{manifest.path}: only a cluster acts on {', '.join(passed_over)}", markup=False, style="dim")


def _export_crds(arguments: argparse.Namespace, console: Console) -> int:
    from plinth_api.crd import crd_yaml_files

    arguments.folder.mkdir(parents=True, exist_ok=True)
    for name, text in crd_yaml_files().items():
        (arguments.folder / name).write_text(text)
        console.print(str(arguments.folder / name), markup=False)
    return OK


def _ui(arguments: argparse.Namespace, console: Console) -> int:
    home = Home(arguments.home)
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(arguments.port)]
    command += ["--backend-store-uri", home.tracking_uri, "--workers", "1"]
    console.print(f"MLflow at http://127.0.0.1:{arguments.port}", markup=False)
    try:
        return subprocess.run(command, check=False).returncode
    except KeyboardInterrupt:
        return OK


if __name__ == "__main__":
    sys.exit(main())
