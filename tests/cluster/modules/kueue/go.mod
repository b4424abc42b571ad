module plinth.dev/tests/cluster/kueue

go 1.26

require sigs.k8s.io/kueue v0.15.2
