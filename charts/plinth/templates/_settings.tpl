{{/*
The operator's settings: those of the values, with what the chart knows itself where they are empty. Who may reach the
dashboard of a Ray cluster is this operator and KubeRay, who both talk to it, and who reads metrics. This chart's MLflow
always has users. Helm takes out what is null, for which the operator would have its own default.
*/}}
{{- define "plinth.settings" -}}
{{- $chart := dict "workloadImage" (include "plinth.workloadImage" .) "trackingUri" (include "plinth.trackingUri" .) -}}
{{- with .Values.vllmImage.repository -}}
{{- $chart = merge $chart (dict "vllmImage" (printf "%s:%s" . (default $.Chart.AppVersion $.Values.vllmImage.tag))) -}}
{{- end -}}
{{- with .Values.namespace -}}
{{- $chart = merge $chart (dict "namespace" .) -}}
{{- end -}}
{{- $control := concat (list .Release.Namespace .Values.kuberay.namespace) .Values.metrics.namespaces | uniq -}}
{{- $chart = merge $chart (dict "controlNamespaces" (default (join "," $control) .Values.settings.controlNamespaces)) -}}
{{- if .Values.mlflow.enabled -}}
{{- $chart = merge $chart (dict "trackingUsers" true) -}}
{{- end -}}
{{- if not (hasKey .Values.settings "fsGroup") -}}
{{- $chart = merge $chart (dict "fsGroup" 0) -}}
{{- end -}}
{{- toYaml (merge $chart .Values.settings) -}}
{{- end -}}
