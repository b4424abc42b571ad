"""Command lines and files of a node's programs: paths and names enter, text leaves. Nothing starts here."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cluster.sandbox import ADDRESS

NODE_NAME = "plinth-node"
DNS_ADDRESS = "10.96.0.10"
DOMAIN = "cluster.local"
POD_ADDRESSES = "10.244.0.0/16"
CNI_PLUGINS = Path("/usr/lib/cni")


@dataclass(frozen=True)
class NodeLayout:
    """Files of one node."""

    folder: Path
    images: Path
    """The root of containerd, which outlives the node."""

    kubeconfig: Path
    cgroup: str

    @property
    def socket(self) -> Path:
        """Where containerd answers; a path of a socket may have 107 characters at most."""
        return Path("/run/plinth-containerd.sock")

    @property
    def containerd_config(self) -> Path:
        """Of containerd."""
        return self.folder / "containerd.toml"

    @property
    def kubelet_config(self) -> Path:
        """Of the kubelet."""
        return self.folder / "kubelet.yaml"

    @property
    def proxy_config(self) -> Path:
        """Of kube-proxy."""
        return self.folder / "kube-proxy.yaml"

    @property
    def corefile(self) -> Path:
        """Of CoreDNS."""
        return self.folder / "Corefile"

    @property
    def cni(self) -> Path:
        """The folder with the pod network's description."""
        return self.folder / "cni"

    def write(self, *, runc: Path, pause: str) -> None:
        """Write every configuration file."""
        self.cni.mkdir(parents=True)
        resolver = self.folder / "resolv.conf"
        resolver.write_text(f"nameserver {ADDRESS}\n")
        (self.cni / "10-plinth.conflist").write_text(json.dumps(pod_network(self.folder / "addresses"), indent=1))
        self.containerd_config.write_text(containerd_config(self, runc=runc, pause=pause))
        self.kubelet_config.write_text(yaml.safe_dump(kubelet_config(self, resolver)))
        self.proxy_config.write_text(yaml.safe_dump(proxy_config(self)))
        self.corefile.write_text(corefile(self))


def pod_network(addresses: Path) -> dict[str, Any]:
    """Each pod has a link of its own to the node, so that every packet passes the node's filters."""
    ranges = [[{"subnet": POD_ADDRESSES}]]
    ipam = {"type": "host-local", "dataDir": str(addresses), "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}]}
    return {"cniVersion": "1.0.0", "name": "plinth", "plugins": [{"type": "ptp", "ipMasq": False, "ipam": ipam}]}


def containerd_config(layout: NodeLayout, *, runc: Path, pause: str) -> str:
    """Of containerd 2; `restrict_oom_score_adj` is for machines without CAP_SYS_RESOURCE."""
    runtime = "plugins.'io.containerd.cri.v1.runtime'"
    return f"""version = 3
root = '{layout.images}'
state = '/run/plinth-containerd'
[grpc]
address = '{layout.socket}'
[plugins.'io.containerd.internal.v1.opt']
path = '{layout.folder / "opt"}'
[plugins.'io.containerd.nri.v1.nri']
disable = true
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = '{pause}'
[{runtime}]
restrict_oom_score_adj = true
[{runtime}.cni]
bin_dirs = ['{CNI_PLUGINS}']
conf_dir = '{layout.cni}'
[{runtime}.containerd.runtimes.runc]
runtime_type = 'io.containerd.runc.v2'
[{runtime}.containerd.runtimes.runc.options]
BinaryName = '{runc}'
SystemdCgroup = false
"""


def kubelet_config(layout: NodeLayout, resolver: Path) -> dict[str, Any]:
    """A node that evicts for nothing but a full disk, and lets the API server in: nobody else can reach it."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": f"unix://{layout.socket}",
        "failCgroupV1": False,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{layout.cgroup}",
        "failSwapOn": False,
        "clusterDNS": [DNS_ADDRESS],
        "clusterDomain": DOMAIN,
        "resolvConf": str(resolver),
        "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
        "authorization": {"mode": "AlwaysAllow"},
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "nodeStatusUpdateFrequency": "4s",
        "syncFrequency": "10s",
    }


def proxy_config(layout: NodeLayout) -> dict[str, Any]:
    """Services by nftables; the connection table's limits stay as they are."""
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clusterCIDR": POD_ADDRESSES,
        "hostnameOverride": NODE_NAME,
        "clientConnection": {"kubeconfig": str(layout.kubeconfig)},
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    }


def corefile(layout: NodeLayout) -> str:
    """Names of the cluster, and of nothing else: there is no network outside."""
    return f""".:53 {{
    bind {ADDRESS}
    errors
    kubernetes {DOMAIN} in-addr.arpa {{
        kubeconfig {layout.kubeconfig}
    }}
    cache 5
}}
"""


def kubelet(layout: NodeLayout) -> list[str]:
    """Arguments of the kubelet."""
    return [
        f"--config={layout.kubelet_config}",
        f"--kubeconfig={layout.kubeconfig}",
        f"--root-dir={layout.folder / 'kubelet'}",
        f"--cert-dir={layout.folder / 'kubelet-certificates'}",
        f"--hostname-override={NODE_NAME}",
        f"--node-ip={ADDRESS}",
    ]


def dns_objects() -> list[dict[str, Any]]:
    """The Service that pods ask for names, which points at CoreDNS on the node."""
    ports = [{"name": f"dns-{protocol.lower()}", "port": 53, "protocol": protocol} for protocol in ("UDP", "TCP")]
    metadata = {"name": "kube-dns", "namespace": "kube-system"}
    service_label = {"kubernetes.io/service-name": "kube-dns"}
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": {"clusterIP": DNS_ADDRESS, "ports": ports},
        },
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {**metadata, "labels": service_label},
            "addressType": "IPv4",
            "ports": ports,
            "endpoints": [{"addresses": [ADDRESS], "conditions": {"ready": True}}],
        },
    ]
