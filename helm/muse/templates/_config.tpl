{{/* The services' configuration files (TOML). Keys are those of each service's src/config.rs; helm/tests gives what is
     rendered here to the real binaries. `toJson` writes strings and lists as TOML reads them. */}}

{{/* The same for every service, not each one's default: a pod has an address of its own. */}}
{{- define "muse.ports.grpc" -}}7700{{- end -}}
{{- define "muse.ports.ops" -}}7701{{- end -}}

{{- define "muse.config.common" -}}
[telemetry]
log_format = {{ .root.Values.telemetry.logFormat | toJson }}
log_level = {{ .root.Values.telemetry.logLevel | toJson }}
{{- with .root.Values.telemetry.otlpEndpoint }}
otlp_endpoint = {{ . | toJson }}
{{- end }}
trace_ratio = {{ .root.Values.telemetry.traceRatio | float64 | printf "%.6f" }}

[ops]
listen = "0.0.0.0:{{ include "muse.ports.ops" . }}"

[drain]
timeout_seconds = {{ .settings.drainSeconds }}
{{- end -}}

{{- define "muse.config.grpc" -}}
[grpc]
listen = "0.0.0.0:{{ include "muse.ports.grpc" . }}"
# No authentication exists yet; the chart's NetworkPolicies are what keeps others out.
insecure_allow_remote = true
{{- end -}}

{{- define "muse.config.runtime" -}}
[runtime]
providers = {{ .settings.providers | toJson }}
threads = {{ .settings.threads }}
{{- end -}}

{{- define "muse.config.gateway" -}}
{{ include "muse.config.common" . }}

{{ include "muse.config.grpc" . }}

[redis]
{{- if include "muse.redisInternal" .root }}
url = "redis://{{ include "muse.fullname" .root }}-redis:6379"
{{- else }}
{{- with .root.Values.redis.external }}
url = {{ .url | toJson }}
{{- if .existingSecret.name }}
password_file = "/run/secrets/redis/password"
{{- end }}
{{- with .sentinels }}
sentinels = {{ . | toJson }}
service_name = {{ $.root.Values.redis.external.serviceName | toJson }}
{{- end }}
{{- with .clusterNodes }}
cluster_nodes = {{ . | toJson }}
{{- end }}
{{- if .sentinelSecret.name }}
sentinel_password_file = "/run/secrets/sentinel/password"
{{- end }}
{{- if .caSecret.name }}
ca_file = "/run/secrets/redis-ca/ca.crt"
{{- end }}
{{- end }}
{{- end }}

[queue]
durability = {{ .root.Values.redis.durability | toJson }}
replicas = {{ .root.Values.redis.replicas }}
replicas_on_disk = {{ .root.Values.redis.replicasOnDisk }}
confirm_timeout_ms = {{ .root.Values.redis.confirmTimeoutMs }}
shards = {{ .root.Values.redis.shards }}
{{- with .root.Values.results }}

[results]
store = {{ .store | toJson }}
{{- with .endpoint }}
endpoint = {{ . | toJson }}
{{- end }}
{{- with .region }}
region = {{ . | toJson }}
{{- end }}
{{- with .account }}
account = {{ . | toJson }}
{{- end }}
{{- if .insecureAllowHttp }}
insecure_allow_http = true
{{- end }}
{{- if .credentialsSecret.name }}
credentials_file = "/run/secrets/results/credentials"
{{- end }}
{{- if .caSecret.name }}
ca_file = "/run/secrets/results-ca/ca.crt"
{{- end }}
{{- end }}
{{- with .root.Values.gateway.defaultModel }}

[models]
default = {{ . | toJson }}
{{- end }}
{{- end -}}

{{- define "muse.config.encoder" -}}
bundle = "{{ include "muse.bundlePath" . }}"

{{ include "muse.config.common" . }}

{{ include "muse.config.grpc" . }}

{{ include "muse.config.runtime" . }}
{{- end -}}

{{- define "muse.config.worker" -}}
stage = {{ .settings.stage | toJson }}
bundle = "{{ include "muse.bundlePath" . }}"

{{ include "muse.config.common" . }}

[hub]
endpoints = ["http://{{ include "muse.fullname" .root }}-gateway:{{ .root.Values.gateway.service.port }}"]

[encoder]
endpoints = {{ include "muse.encoderEndpoints" .root | fromYamlArray | toJson }}

{{ include "muse.config.runtime" . }}
{{- end -}}

{{/* Every encoder by its own name, as a YAML list. */}}
{{- define "muse.encoderEndpoints" -}}
{{- $service := printf "%s-encoder" (include "muse.fullname" .) -}}
{{- $port := include "muse.ports.grpc" . -}}
{{- range $index := until (int .Values.encoder.replicas) }}
- http://{{ $service }}-{{ $index }}.{{ $service }}:{{ $port }}
{{- end }}
{{- end -}}

{{/* valkey.conf of the chart's own Redis. */}}
{{- define "muse.config.redis" -}}
bind * -::*
port 6379
# There is no password: the NetworkPolicy lets only gateways in.
protected-mode no
dir /data
# Accepted means on disk, unless redis.durability says everysec; with synced the gateways wait for it.
appendonly yes
appendfsync {{ ternary "always" "everysec" (eq .Values.redis.durability "always") }}
# A file that was cut off stops the server instead of losing what it held in silence.
aof-load-truncated no
# The append-only file is enough.
save ""
# Nothing may be dropped to make room: gateways refuse new jobs before it is full, and refuse to start on any other policy.
maxmemory {{ .Values.redis.maxmemory }}
maxmemory-policy noeviction
{{- end -}}
