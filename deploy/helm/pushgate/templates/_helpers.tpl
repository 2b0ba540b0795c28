{{- /* The names of all objects begin with the release's. A pod's name is a node's name: 64 at most. */ -}}
{{- define "pushgate.name" -}}
{{ .Release.Name | trunc 36 | trimSuffix "-" }}
{{- end -}}

{{- define "pushgate.selector" -}}
app.kubernetes.io/name: pushgate
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "pushgate.metadata" -}}
name: {{ include "pushgate.name" .root }}-{{ .component }}
labels:
  {{- include "pushgate.selector" . | nindent 2 }}
{{- end -}}

{{- define "pushgate.image" -}}
image: "{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}"
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- end -}}

{{- /* Variables whose values are keys of the Secret: a list of names, `optional` for those that may be missing. */ -}}
{{- define "pushgate.secrets" -}}
{{- $secret := .root.Values.secretName -}}
{{- range $name := concat .required .optional }}
- name: {{ $name }}
  valueFrom:
    secretKeyRef:
      name: {{ $secret }}
      key: {{ $name }}
      {{- if has $name $.optional }}
      optional: true
      {{- end }}
{{- end }}
{{- end -}}

{{- define "pushgate.variables" -}}
{{- range $name, $value := . }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end -}}

{{- /* What makes a pod unable to do more than its job: no root, no token, nothing to write to. */ -}}
{{- define "pushgate.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "pushgate.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "pushgate.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end -}}

{{- define "pushgate.spread" -}}
{{- range $key := list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
- topologyKey: {{ $key }}
  maxSkew: 1
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels:
      {{- include "pushgate.selector" $ | nindent 6 }}
  # Pods of this rollout alone, or old pods would push new ones to one side.
  matchLabelKeys: [pod-template-hash]
{{- end }}
{{- end -}}

{{- define "pushgate.mounts" -}}
{{- if .Values.internalTlsSecretName }}
- name: internal-tls
  mountPath: /etc/pushgate/internal-tls
  readOnly: true
{{- end }}
{{- if .Values.filesSecretName }}
- name: files
  mountPath: /etc/pushgate/files
  readOnly: true
{{- end }}
{{- end -}}

{{- define "pushgate.volumes" -}}
{{- with .root.Values.internalTlsSecretName }}
- name: internal-tls
  secret:
    secretName: {{ . }}
    # A processor has no use for the gateways' key.
    items:
      {{- range $file := $.files }}
      - {key: {{ $file }}, path: {{ $file }}}
      {{- end }}
{{- end }}
{{- with .root.Values.filesSecretName }}
- name: files
  secret:
    secretName: {{ . }}
{{- end }}
{{- end -}}
