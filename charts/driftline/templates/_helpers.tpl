{{/* The release's own prefix: "driftline" for a release of that name, else "<release>-driftline", at most 52 characters. */}}
{{- define "driftline.name" -}}
{{- if contains "." .Release.Name }}
{{- fail (printf "the release is called %s, and a Service's name has no dot: take another name" .Release.Name) }}
{{- end -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 52 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" }}{{ end }}
{{- end }}

{{/* Labels of every object; call with (dict "root" . "component" "agent"). */}}
{{- define "driftline.labels" -}}
{{ include "driftline.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{/* The labels by which a component's pods are found: they never change. */}}
{{- define "driftline.selector" -}}
app.kubernetes.io/name: driftline
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* The Secret with the authority: the release's own, or the one that the values name. */}}
{{- define "driftline.authoritySecret" -}}
{{- $own := printf "%s-authority" (include "driftline.name" .) }}
{{- if eq .Values.certificates.authoritySecret $own }}
{{- fail (printf "certificates.authoritySecret is %s, which is the release's own Secret and would be deleted: leave it empty, or put your authority into a Secret of another name" $own) }}
{{- end -}}
{{ .Values.certificates.authoritySecret | default $own }}
{{- end }}

{{- define "driftline.image" -}}
{{- if and .Values.image.tag .Values.image.digest }}
{{- fail "image.tag and image.digest are both set: a digest is exactly one image. Take one of them out (--set image.digest= for an upgrade by tag)" }}
{{- end -}}
{{ .Values.image.repository }}{{ with .Values.image.digest }}@{{ . }}{{ else }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{/* Liveness and readiness, the same for both roles. */}}
{{- define "driftline.probes" -}}
livenessProbe:
  httpGet: {path: /healthz, port: admin}
  periodSeconds: 10
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /readyz, port: admin}
  periodSeconds: 5
{{- end }}

{{/* Where pods may run; call with the role's values. */}}
{{- define "driftline.placement" -}}
{{- with .priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with concat (.ownTolerations | default list) .tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
