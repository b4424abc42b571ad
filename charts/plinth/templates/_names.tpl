{{/* The release's name, with the chart's where it does not have it already; short enough for what is appended. */}}
{{- define "plinth.fullname" -}}
{{- $name := ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) (contains .Chart.Name .Release.Name) -}}
{{- $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "plinth.serviceAccount" -}}
{{- default (include "plinth.fullname" .) .Values.serviceAccount.name -}}
{{- end -}}

{{/* By these Deployments find their pods: they can never change. */}}
{{- define "plinth.selectorLabels" -}}
{{ include "plinth.releaseLabels" . }}
app.kubernetes.io/component: operator
{{- end -}}

{{- define "plinth.mlflow.selectorLabels" -}}
{{ include "plinth.releaseLabels" . }}
app.kubernetes.io/component: mlflow
{{- end -}}

{{- define "plinth.releaseLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "plinth.labels" -}}
{{ include "plinth.selectorLabels" . }}
{{ include "plinth.chartLabels" . }}
{{- end -}}

{{- define "plinth.mlflow.labels" -}}
{{ include "plinth.mlflow.selectorLabels" . }}
{{ include "plinth.chartLabels" . }}
{{- end -}}

{{- define "plinth.chartLabels" -}}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{- define "plinth.mlflow.name" -}}
{{- include "plinth.fullname" . }}-mlflow
{{- end -}}

{{/* The Secret with the administrator of MLflow and the key of its forms. */}}
{{- define "plinth.mlflow.secret" -}}
{{- default (printf "%s-admin" (include "plinth.mlflow.name" .)) .Values.mlflow.auth.existingSecret -}}
{{- end -}}

{{- define "plinth.workloadImage" -}}
{{- printf "%s:%s" .Values.workloadImage.repository (default .Chart.AppVersion .Values.workloadImage.tag) -}}
{{- end -}}

{{/* MLflow's address for the operator and for pods of every namespace. */}}
{{- define "plinth.trackingUri" -}}
{{- if .Values.settings.trackingUri -}}
{{- .Values.settings.trackingUri -}}
{{- else if .Values.mlflow.enabled -}}
http://{{ include "plinth.mlflow.name" . }}.{{ .Release.Namespace }}.svc:5000
{{- else -}}
{{- fail "settings.trackingUri: is required where mlflow.enabled is false: the address of the MLflow server" -}}
{{- end -}}
{{- end -}}
