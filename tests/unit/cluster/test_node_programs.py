"""Configuration of a node's programs, as the programs read it."""

import json
import tomllib
from pathlib import Path

import pytest
import yaml

from cluster import node_programs
from cluster.node_programs import DNS_ADDRESS, NodeLayout
from cluster.sandbox import ADDRESS


@pytest.fixture
def layout(tmp_path):
    layout = NodeLayout(tmp_path, tmp_path / "images", tmp_path / "kubeconfig", "plinth-sandbox-x")
    layout.write(runc=Path("/bin/runc"), pause="plinth.test/pause:1")
    return layout


def test_containerd_takes_the_images_that_are_kept_and_our_runc(layout, tmp_path):
    config = tomllib.loads(layout.containerd_config.read_text())
    assert config["root"] == str(tmp_path / "images")
    plugins = config["plugins"]
    assert plugins["io.containerd.cri.v1.images"]["pinned_images"]["sandbox"] == "plinth.test/pause:1"
    runtime = plugins["io.containerd.cri.v1.runtime"]
    assert runtime["containerd"]["runtimes"]["runc"]["options"]["BinaryName"] == "/bin/runc"
    assert Path(runtime["cni"]["conf_dir"]) == layout.cni


def test_kubelet_and_containerd_meet_at_the_same_socket(layout):
    kubelet = yaml.safe_load(layout.kubelet_config.read_text())
    containerd = tomllib.loads(layout.containerd_config.read_text())
    assert kubelet["containerRuntimeEndpoint"] == f"unix://{containerd['grpc']['address']}"
    assert kubelet["cgroupRoot"] == "/plinth-sandbox-x"


def test_pods_ask_the_service_of_cluster_dns_which_is_on_the_node(layout):
    kubelet = yaml.safe_load(layout.kubelet_config.read_text())
    service, slice_ = node_programs.dns_objects()
    assert kubelet["clusterDNS"] == [DNS_ADDRESS] == [service["spec"]["clusterIP"]]
    assert slice_["endpoints"][0]["addresses"] == [ADDRESS]
    assert f"bind {ADDRESS}" in layout.corefile.read_text()


def test_every_pod_has_a_link_of_its_own(layout):
    (file,) = layout.cni.iterdir()
    (plugin,) = json.loads(file.read_text())["plugins"]
    assert plugin["type"] == "ptp"
    assert plugin["ipam"]["ranges"] == [[{"subnet": node_programs.POD_ADDRESSES}]]
    assert yaml.safe_load(layout.proxy_config.read_text())["clusterCIDR"] == node_programs.POD_ADDRESSES
