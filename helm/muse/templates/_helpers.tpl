{{/* Names, labels and the parts that every pod has in common. Most take (dict "root" $ "component" "gateway" …). */}}

{{- define "muse.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* At most 40 characters, so that "-superres-…" and Kubernetes' own suffixes fit into 63. */}}
{{- define "muse.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "muse.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "muse.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/part-of: muse
{{ include "muse.selectorLabels" . }}
{{- end -}}

{{- define "muse.selectorLabels" -}}
app.kubernetes.io/name: {{ include "muse.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- with .pool }}
muse-pool: {{ . }}
{{- end }}
{{- end -}}

{{- define "muse.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "muse.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* (dict "root" $ "repository" "muse-gateway" "tag" "") */}}
{{- define "muse.image" -}}
{{- $tag := default (default .root.Chart.AppVersion .root.Values.image.tag) .tag -}}
{{- $repository := printf "%s:%s" .repository $tag -}}
{{- if .root.Values.image.registry -}}
{{- printf "%s/%s" (trimSuffix "/" .root.Values.image.registry) $repository -}}
{{- else -}}
{{- $repository -}}
{{- end -}}
{{- end -}}

{{/* What a pod of ours has besides its containers and volumes. (dict "root" $ "settings" .Values.gateway …) */}}
{{- define "muse.podSpec" -}}
serviceAccountName: {{ include "muse.serviceAccountName" .root }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  seccompProfile:
    type: RuntimeDefault
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "muse.selectorLabels" . | nindent 8 }}
{{- with .settings.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .settings.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .settings.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .settings.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- end -}}

{{- define "muse.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Liveness does not depend on Redis or on the model; readiness says: warm, connected and not draining.
     (dict "startupSeconds" 600) */}}
{{- define "muse.probes" -}}
startupProbe:
  httpGet:
    path: /livez
    port: ops
  periodSeconds: 5
  timeoutSeconds: 3
  failureThreshold: {{ max 2 (div (int .startupSeconds) 5) }}
livenessProbe:
  httpGet:
    path: /livez
    port: ops
  periodSeconds: 10
  timeoutSeconds: 3
  failureThreshold: 3
readinessProbe:
  httpGet:
    path: /readyz
    port: ops
  periodSeconds: 5
  timeoutSeconds: 3
  failureThreshold: 2
{{- end -}}

{{/* Containers' resources with the GPUs of the pool as a limit. (dict "resources" … "gpu" …) */}}
{{- define "muse.resources" -}}
{{- $resources := deepCopy .resources -}}
{{- if and .gpu (gt (int .gpu.count) 0) -}}
{{- $limits := default (dict) $resources.limits -}}
{{- $_ := set $limits .gpu.resource (int .gpu.count) -}}
{{- $_ := set $resources "limits" $limits -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{/* A pool with what it leaves out taken from workerDefaults and bundle, as YAML. Where a pool's keys are names that the
     user chose (labels, selectors), the pool's replace the defaults whole: {} takes them away. (dict "root" $ "pool" …) */}}
{{- define "muse.pool" -}}
{{- $defaults := merge (dict "bundle" (deepCopy .root.Values.bundle)) (deepCopy .root.Values.workerDefaults) -}}
{{- range $key := list "nodeSelector" "podAnnotations" "podLabels" -}}
{{- if hasKey $.pool $key -}}{{- $_ := unset $defaults $key -}}{{- end -}}
{{- end -}}
{{- mergeOverwrite $defaults (deepCopy .pool) | toYaml -}}
{{- end -}}

{{/* "true" when the chart runs its own Redis. */}}
{{- define "muse.redisInternal" -}}
{{- if not .Values.redis.external.url -}}true{{- end -}}
{{- end -}}

{{/* What a gateway is given as files, as a YAML list: volume and folder, Secret, key, file. */}}
{{- define "muse.gatewaySecrets" -}}
{{- $redis := .Values.redis.external -}}
{{- $results := .Values.results -}}
{{- range $volume, $given := dict
  "redis" (dict "secret" $redis.existingSecret "file" "password")
  "sentinel" (dict "secret" $redis.sentinelSecret "file" "password")
  "redis-ca" (dict "secret" $redis.caSecret "file" "ca.crt")
  "results" (dict "secret" $results.credentialsSecret "file" "credentials")
  "results-ca" (dict "secret" $results.caSecret "file" "ca.crt")
}}
{{- if $given.secret.name }}
- volume: {{ $volume }}
  name: {{ $given.secret.name }}
  key: {{ $given.secret.key | quote }}
  file: {{ $given.file }}
{{- end }}
{{- end }}
{{- end -}}

{{/* The image of a service that runs a model: the one with CUDA libraries when the pool has GPUs.
     (dict "service" "muse-worker" "settings" …) */}}
{{- define "muse.runtimeImage" -}}
{{- if gt (int .settings.gpu.count) 0 -}}{{ .service }}-cuda{{- else -}}{{ .service }}{{- end -}}
{{- end -}}
