{{- define "ensembles.fullname" -}}
{{- $name := .Release.Name -}}
{{- if not (contains .Chart.Name $name) -}}{{- $name = printf "%s-%s" $name .Chart.Name -}}{{- end -}}
{{- $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "ensembles.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "ensembles.fullname" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | required "serviceAccount.name: needed where serviceAccount.create is false" -}}
{{- end -}}
{{- end -}}

{{- define "ensembles.selectorLabels" -}}
app.kubernetes.io/name: ensemble-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "ensembles.labels" -}}
{{ include "ensembles.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: ensembles
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{/* An image's full name. Takes {root, image, suffix}: the suffix belongs to the default tag. */}}
{{- define "ensembles.image" -}}
{{- $registry := .image.registry | default .root.Values.global.imageRegistry -}}
{{- $name := .image.repository -}}
{{- if $registry -}}{{- $name = printf "%s/%s" $registry $name -}}{{- end -}}
{{- if .image.digest -}}
{{- printf "%s@%s" $name .image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name (.image.tag | default (printf "%s%s" .root.Chart.AppVersion (.suffix | default ""))) -}}
{{- end -}}
{{- end -}}

{{- define "ensembles.pullSecrets" -}}
{{- with .Values.global.imagePullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Name of the ConfigMap with the stated inventory; empty: the cluster is asked. */}}
{{- define "ensembles.staticInventory" -}}
{{- if and .Values.inventory.static .Values.inventory.existingConfigMap -}}
{{- fail "inventory: static and existingConfigMap exclude each other; remove one" -}}
{{- end -}}
{{- if .Values.inventory.static -}}
{{- printf "%s-inventory" (include "ensembles.fullname" .) -}}
{{- else -}}
{{- .Values.inventory.existingConfigMap -}}
{{- end -}}
{{- end -}}

{{/* What pods of restricted namespaces must say. */}}
{{- define "ensembles.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "ensembles.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}
