{{- define "baton.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" }}{{ end -}}
{{- end -}}

{{/* (dict "root" $ "component" "gateway") */}}
{{- define "baton.selector" -}}
app.kubernetes.io/name: baton
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "baton.labels" -}}
{{ include "baton.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{- define "baton.image" -}}
{{ .root.Values.image.registry }}{{ .image }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- end -}}

{{/* One stable name for each gateway that may run: a name that stands for several would reach only one. */}}
{{- define "baton.gateways" -}}
{{- $name := include "baton.name" . -}}
{{- $found := list -}}
{{- range $index := until (int .Values.gateway.maxReplicas) -}}
{{- $found = append $found (printf "%s-gateway-%d.%s-gateway-peers:50051" $name $index $name) -}}
{{- end -}}
{{ join "," $found }}
{{- end -}}

{{/* Pools of workers that are deployed, as a JSON array. */}}
{{- define "baton.pools" -}}
{{- $found := list -}}
{{- range $component := list "prefill" "decode" "both" -}}
{{- $pool := index $.Values $component -}}
{{- if or (gt (int $pool.replicas) 0) $pool.autoscaling.enabled -}}
{{- $found = append $found $component -}}
{{- end -}}
{{- end -}}
{{- if not (or (has "both" $found) (and (has "prefill" $found) (has "decode" $found))) -}}
{{- fail "prefill.replicas, decode.replicas, both.replicas: nobody could answer: set both, or prefill and decode" -}}
{{- end -}}
{{ toJson $found }}
{{- end -}}

{{/* The Secret for "public", "gateway" or "worker"; empty: no TLS. (dict "root" $ "for" "public" "given" name) */}}
{{- define "baton.secret" -}}
{{- $security := .root.Values.security -}}
{{- if .given }}{{ .given }}{{ else if $security.certManagerIssuer }}{{ include "baton.name" .root }}-{{ .for }}-tls{{ end -}}
{{- end -}}
{{- define "baton.publicSecret" -}}
{{ include "baton.secret" (dict "root" . "for" "public" "given" .Values.security.publicTls.secret) }}
{{- end -}}
{{- define "baton.gatewaySecret" -}}
{{ include "baton.secret" (dict "root" . "for" "gateway" "given" .Values.security.peerTls.gatewaySecret) }}
{{- end -}}
{{- define "baton.workerSecret" -}}
{{ include "baton.secret" (dict "root" . "for" "worker" "given" .Values.security.peerTls.workerSecret) }}
{{- end -}}

{{/* Scheme of metrics and health: of the services' own certificates. */}}
{{- define "baton.peerScheme" -}}
{{ ternary "HTTPS" "HTTP" (not (empty (include "baton.workerSecret" .))) }}
{{- end -}}

{{- define "baton.checkSecurity" -}}
{{- if not .Values.security.insecure -}}
{{- if not (and (include "baton.publicSecret" .) (include "baton.gatewaySecret" .) (include "baton.workerSecret" .) .Values.security.apiKeys.secret) -}}
{{- fail "security: set certManagerIssuer (or publicTls.secret, peerTls.gatewaySecret and peerTls.workerSecret) and apiKeys.secret; or security.insecure=true where the network is trusted" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* (dict "root" $ "secret" name) */}}
{{- define "baton.peerFlags" -}}
{{- if .secret }}
- "--peer-cert=/certs/peer/tls.crt"
- "--peer-key=/certs/peer/tls.key"
- "--peer-ca=/certs/peer/ca.crt"
{{- end }}
{{- if .root.Values.security.insecure }}
- "--insecure"
{{- end }}
{{- end -}}

{{- define "baton.flags" -}}
{{- range $flag, $value := . }}
- {{ printf "--%s=%v" $flag $value | quote }}
{{- end }}
{{- end -}}

{{- define "baton.modelFlags" -}}
- {{ printf "--model=/models/%s" .Values.model.path | quote }}
- {{ printf "--model-name=%s" .Values.model.name | quote }}
{{- end -}}

{{- define "baton.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* What every pod has: user, model, scratch space, spread. (dict "root" $ "component" "prefill" "pool" values) */}}
{{- define "baton.pod" -}}
{{- $values := .root.Values -}}
serviceAccountName: {{ include "baton.name" .root }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with $values.image.pullSecrets }}
imagePullSecrets: {{ toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
# Endpoints forget the pod, then SIGTERM, then running requests end, then 10 s to close.
terminationGracePeriodSeconds: {{ add .pool.preStopSeconds .pool.drainSeconds 10 }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector: {matchLabels: {{ include "baton.selector" . | fromYaml | toJson }}}
{{- with .pool.nodeSelector }}
nodeSelector: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .pool.tolerations }}
tolerations: {{ toYaml . | nindent 2 }}
{{- end }}
{{- if $values.model.fetch.enabled }}
initContainers:
  - name: model
    image: {{ include "baton.image" (dict "root" .root "image" $values.model.fetch.image) }}
    imagePullPolicy: {{ $values.image.pullPolicy }}
    securityContext: {{ include "baton.containerSecurity" . | nindent 6 }}
    resources:
      requests: {cpu: 500m, memory: 1Gi}
      limits: {memory: 2Gi}
    volumeMounts:
      - {name: models, mountPath: /models}
      - {name: tmp, mountPath: /tmp}
{{- end }}
volumes:
  - name: tmp
    emptyDir: {}
  {{- range $name, $secret := .secrets }}
  {{- if $secret }}
  - name: {{ $name }}
    secret: {secretName: {{ $secret }}, defaultMode: 0440}
  {{- end }}
  {{- end }}
  - name: models
    {{- if $values.model.fetch.enabled }}
    emptyDir: {}
    {{- else }}
    {{- required "model.volume: name a volume source, or set model.fetch.enabled" $values.model.volume | toYaml | nindent 4 }}
    {{- end }}
{{- end -}}

{{- define "baton.container" -}}
image: {{ include "baton.image" (dict "root" .root "image" .pool.image) }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
securityContext: {{ include "baton.containerSecurity" . | nindent 2 }}
resources: {{ toYaml .pool.resources | nindent 2 }}
volumeMounts:
  - {name: models, mountPath: /models, readOnly: true}
  - {name: tmp, mountPath: /tmp}
  {{- range $name, $secret := .secrets }}
  {{- if $secret }}
  - {name: {{ $name }}, mountPath: /certs/{{ $name }}, readOnly: true}
  {{- end }}
  {{- end }}
{{- if .pool.preStopSeconds }}
lifecycle:
  preStop: {sleep: {seconds: {{ .pool.preStopSeconds }}}}
{{- end }}
{{- end -}}

{{- define "baton.podDisruptionBudget" -}}
{{- if .root.Values.podDisruptionBudget.enabled }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ include "baton.name" .root }}-{{ .component }}
  labels: {{ include "baton.labels" . | nindent 4 }}
spec:
  maxUnavailable: {{ .root.Values.podDisruptionBudget.maxUnavailable }}
  selector: {matchLabels: {{ include "baton.selector" . | fromYaml | toJson }}}
{{- end }}
{{- end -}}

{{/* (dict "root" $ "component" "prefill" "pool" values "kind" "Deployment" "max" 8) */}}
{{- define "baton.autoscaler" -}}
{{- if .pool.autoscaling.enabled }}
{{- $name := printf "%s-%s" (include "baton.name" .root) .component }}
---
{{- if and (eq .root.Values.autoscalerKind "keda") .pool.autoscaling.triggers }}
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata:
  name: {{ $name }}
  labels: {{ include "baton.labels" . | nindent 4 }}
spec:
  scaleTargetRef: {kind: {{ .kind }}, name: {{ $name }}}
  minReplicaCount: {{ .pool.replicas }}
  maxReplicaCount: {{ .max }}
  cooldownPeriod: 300
  triggers:
    {{- range .pool.autoscaling.triggers }}
    - type: prometheus
      metadata:
        serverAddress: {{ $.root.Values.keda.serverAddress }}
        query: {{ .query | quote }}
        threshold: {{ .threshold | quote }}
    {{- end }}
{{- else }}
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: {{ $name }}
  labels: {{ include "baton.labels" . | nindent 4 }}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: {{ .kind }}, name: {{ $name }}}
  minReplicas: {{ max 1 .pool.replicas }}
  maxReplicas: {{ .max }}
  metrics: {{ toYaml .pool.autoscaling.metrics | nindent 4 }}
  behavior:
    # A pod that goes takes its prefix cache with it, and its requests are prefilled again.
    scaleDown:
      stabilizationWindowSeconds: 300
      policies: [{type: Pods, value: 1, periodSeconds: 60}]
{{- end }}
{{- end }}
{{- end -}}
