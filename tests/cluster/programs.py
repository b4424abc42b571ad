"""Command lines of a control plane's programs: folder, ports and keys enter, arguments leave. Nothing starts here."""

import socket
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

LOOPBACK = "127.0.0.1"
SERVICE_ADDRESSES = "10.96.0.0/16"


@dataclass(frozen=True)
class Ports:
    """One for each listener; all of them on the loopback address, but that of the API server where nodes are."""

    etcd: int
    etcd_peers: int
    api: int
    kuberay_probe: int


def free_ports() -> Ports:
    """Ports that nobody uses now, held together while they are chosen so that all differ."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(4)]
        for probe in sockets:
            probe.bind((LOOPBACK, 0))
        return Ports(*(probe.getsockname()[1] for probe in sockets))


@dataclass(frozen=True)
class Layout:
    """Files of one control plane."""

    folder: Path

    @property
    def kubeconfig(self) -> Path:
        """The administrator's."""
        return self.folder / "admin.kubeconfig"

    @property
    def certificates(self) -> Path:
        """What the API server makes for itself."""
        return self.folder / "certificates"

    @property
    def certificate(self) -> Path:
        """What clients trust."""
        return self.certificates / "apiserver.crt"

    @property
    def certificate_key(self) -> Path:
        """The key of the certificate."""
        return self.certificates / "apiserver.key"

    @property
    def service_account_key(self) -> Path:
        """Signs the tokens of service accounts."""
        return self.folder / "service-account.key"

    @property
    def tokens(self) -> Path:
        """The administrator's token, as the API server reads it."""
        return self.folder / "tokens.csv"

    def write_secrets(self, token: str) -> None:
        """Make the files that the programs expect to find."""
        key = ec.generate_private_key(ec.SECP256R1())
        encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL
        pem = key.private_bytes(encoding, form, serialization.NoEncryption())
        for path, content in [
            (self.service_account_key, pem),
            (self.tokens, f'{token},plinth-test-admin,plinth-test-admin,"system:masters"\n'.encode()),
        ]:
            path.touch(mode=0o600)
            path.write_bytes(content)


def etcd(layout: Layout, ports: Ports) -> list[str]:
    """Arguments of etcd; what it holds may be lost with the machine."""
    client, peers = f"http://{LOOPBACK}:{ports.etcd}", f"http://{LOOPBACK}:{ports.etcd_peers}"
    return [
        f"--data-dir={layout.folder / 'etcd'}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peers}",
        f"--initial-advertise-peer-urls={peers}",
        f"--initial-cluster=default={peers}",
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]


def api_server(layout: Layout, ports: Ports, *, address: str) -> list[str]:
    """Arguments of kube-apiserver; pods can reach it on any address but a loopback one."""
    return [
        f"--etcd-servers=http://{LOOPBACK}:{ports.etcd}",
        f"--bind-address={address}",
        # Without it the address is guessed from the default route, which a sandbox may not have.
        f"--advertise-address={address}",
        # No Service may have endpoints on a loopback address.
        f"--endpoint-reconciler-type={'none' if address == LOOPBACK else 'lease'}",
        f"--secure-port={ports.api}",
        f"--cert-dir={layout.certificates}",
        f"--service-cluster-ip-range={SERVICE_ADDRESSES}",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={layout.service_account_key}",
        f"--service-account-signing-key-file={layout.service_account_key}",
        "--authorization-mode=RBAC,Node",
        # As on OpenShift: who sets blockOwnerDeletion must be allowed to update the owner's finalizers.
        "--enable-admission-plugins=OwnerReferencesPermissionEnforcement",
        f"--token-auth-file={layout.tokens}",
        # The names of nodes resolve nowhere.
        "--kubelet-preferred-address-types=InternalIP",
        "--allow-privileged=true",
        "--profiling=false",
        # Tests come in bursts of several clients; fairness between them is not what they test.
        "--max-requests-inflight=2000",
        "--max-mutating-requests-inflight=1000",
    ]


def controller_manager(layout: Layout, *, real_nodes: bool) -> list[str]:
    """Arguments of kube-controller-manager."""
    return [
        f"--kubeconfig={layout.kubeconfig}",
        f"--service-account-private-key-file={layout.service_account_key}",
        f"--root-ca-file={layout.certificate}",
        f"--cert-dir={layout.folder / 'controller-manager'}",
        # Of a node that exists on paper only nobody renews the lease.
        f"--controllers=*{'' if real_nodes else ',-node-lifecycle-controller'}",
        "--leader-elect=false",
        "--secure-port=0",
        "--kube-api-qps=500",
        "--kube-api-burst=1000",
    ]


def scheduler(layout: Layout) -> list[str]:
    """Arguments of kube-scheduler."""
    return [
        f"--kubeconfig={layout.kubeconfig}",
        f"--cert-dir={layout.folder / 'scheduler'}",
        "--leader-elect=false",
        "--secure-port=0",
        "--kube-api-qps=500",
        "--kube-api-burst=1000",
    ]


def kuberay(layout: Layout, ports: Ports, *, hurried: bool) -> list[str]:
    """Arguments of the KubeRay operator, which runs outside of the cluster; hurried is faster than its defaults are."""
    return [
        f"--kubeconfig={layout.kubeconfig}",
        "--enable-leader-election=false",
        "--metrics-addr=0",
        f"--health-probe-bind-address={LOOPBACK}:{ports.kuberay_probe}",
        # Names of Services do not resolve out here.
        "--use-kubernetes-proxy=true",
        "--log-stdout-encoder=console",
        *(["--reconcile-concurrency=4", "--qps=500", "--burst=1000"] if hurried else []),
    ]
