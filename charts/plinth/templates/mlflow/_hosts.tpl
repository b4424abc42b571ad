{{/*
Names by which MLflow lets itself be called, as a browser that was lured to it calls it by others. An entry without a
star matches the whole header, the port included. Probes need no name.
*/}}
{{- define "plinth.mlflow.allowedHosts" -}}
{{- $service := printf "%s.%s" (include "plinth.mlflow.name" .) .Release.Namespace -}}
{{- $names := list (include "plinth.mlflow.name" .) $service (printf "%s.svc" $service) (printf "%s.svc.cluster.local" $service) -}}
{{- $hosts := list -}}
{{- range concat $names (list "localhost" "127.0.0.1") .Values.mlflow.allowedHosts -}}
{{- $hosts = concat $hosts (list . (printf "%s:*" .)) -}}
{{- end -}}
{{- join "," $hosts -}}
{{- end -}}

{{/* Pages of these may change things: MLflow's own, under the names that browsers use. */}}
{{- define "plinth.mlflow.allowedOrigins" -}}
{{- $origins := list -}}
{{- range .Values.mlflow.allowedHosts -}}
{{- $origins = concat $origins (list (printf "https://%s" .) (printf "http://%s" .)) -}}
{{- end -}}
{{- join "," $origins -}}
{{- end -}}
