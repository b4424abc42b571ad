"""Plinth workloads: what runs where the data and the accelerators are; reads a run document, knows no Kubernetes."""
