{{/* What the operator does in namespaces: exactly what controller/ does, as a test checks. */}}
{{- define "ensembles.rules.objects" -}}
- apiGroups: [ensembles.dev]
  resources: [inferenceensembles]
  verbs: [list, watch]
- apiGroups: [ensembles.dev]
  resources: [inferenceensembles/status]
  verbs: [patch]
# Server-side apply is patch, and create where there is nothing yet.
- apiGroups: [ensembles.dev]
  resources: [modelprofiles]
  verbs: [list, watch, create, patch]
- apiGroups: [""]
  resources: [pods, configmaps, services]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [apps]
  resources: [controllerrevisions]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [list, watch, create, patch, delete]
# The token of shards on several nodes is made once, and never read.
- apiGroups: [""]
  resources: [secrets]
  verbs: [create]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [events]
  verbs: [create, patch]
{{- end -}}

{{/* Besides, in a whole cluster: its nodes, and GPUs that are asked for one by one. */}}
{{- define "ensembles.rules.cluster" -}}
- apiGroups: [""]
  resources: [nodes]
  verbs: [list, watch]
- apiGroups: [resource.k8s.io]
  resources: [resourceslices, resourceclaims]
  verbs: [list, watch]
- apiGroups: [resource.k8s.io]
  resources: [resourceclaimtemplates]
  verbs: [list, watch, create, patch, delete]
{{- end -}}
