{{/*
What the operator may do, and nothing that it does not do: tests/integration/test_operator_rbac.py compares this with
what it asks the API server for. No Secrets, no pods of its own. Server-side apply is `patch`, and `create` the first
time.
*/}}
{{- define "plinth.rules" -}}
- apiGroups: [plinth.dev]
  resources: [pretrainjobs, finetunejobs, modelservices]
  verbs: [get, list, watch]
- apiGroups: [plinth.dev]
  resources: [pretrainjobs/status, finetunejobs/status, modelservices/status]
  verbs: [patch]
{{/* Children block the deletion of their owner, which OwnerReferencesPermissionEnforcement (on in OpenShift) allows
to those who may update the owner's finalizers. No finalizer is ever set. */ -}}
- apiGroups: [plinth.dev]
  resources: [pretrainjobs/finalizers, finetunejobs/finalizers, modelservices/finalizers]
  verbs: [update]
- apiGroups: [ray.io]
  resources: [rayjobs]
  verbs: [get, list, watch, create, delete]
- apiGroups: [ray.io]
  resources: [rayservices]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [ray.io]
  resources: [rayclusters]
  verbs: [list, watch]
- apiGroups: [kueue.x-k8s.io]
  resources: [workloads]
  verbs: [list, watch]
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, list, watch, create, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies, ingresses]
  verbs: [get, list, watch, create, patch, delete]
{{/* KubeRay makes a Service for every RayService, and would take over one of that name that is somebody else's. */ -}}
- apiGroups: [""]
  resources: [services]
  verbs: [get]
- apiGroups: [""]
  resources: [pods, persistentvolumeclaims]
  verbs: [list, watch]
- apiGroups: [""]
  resources: [events]
  verbs: [create]
{{- end -}}
