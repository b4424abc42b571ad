{{/* To anybody: where a cluster's DNS is differs, on each node or outside of it. OpenShift's listens on 5353. */}}
{{- define "plinth.dnsEgress" -}}
- ports:
    - {protocol: UDP, port: 53}
    - {protocol: TCP, port: 53}
    - {protocol: UDP, port: 5353}
    - {protocol: TCP, port: 5353}
{{- end -}}
