{{/* The version is the one that the tests run. */}}
{{- define "plinth.installKubeRay" -}}
helm repo add kuberay https://ray-project.github.io/kuberay-helm/
helm install kuberay-operator kuberay/kuberay-operator --version 1.6.2 -n {{ .Values.kuberay.namespace }} --create-namespace
{{- end -}}
