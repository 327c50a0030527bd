{{/* Where a pod gets its bundle from. All take (dict "root" $ "bundle" <.Values.bundle, or a pool's own>). */}}

{{/* Where the container finds it. */}}
{{- define "muse.bundlePath" -}}/bundle{{- end -}}

{{- define "muse.bundleVolume" -}}
- name: bundle
  {{- if eq .bundle.source "claim" }}
  persistentVolumeClaim:
    claimName: {{ required "bundle.claim.name is empty: name an existing PersistentVolumeClaim, or set bundle.source to image" .bundle.claim.name }}
    readOnly: true
  {{- else }}
  emptyDir:
    sizeLimit: {{ .bundle.image.sizeLimit }}
  {{- end }}
{{- end -}}

{{- define "muse.bundleMount" -}}
- name: bundle
  mountPath: {{ include "muse.bundlePath" . }}
  readOnly: true
  {{- if and (eq .bundle.source "claim") .bundle.claim.path }}
  subPath: {{ .bundle.claim.path }}
  {{- end }}
{{- end -}}

{{- define "muse.bundleInitContainer" -}}
{{- if eq .bundle.source "image" }}
initContainers:
  - name: bundle
    image: {{ include "muse.image" (dict "root" .root "repository" .bundle.image.repository "tag" .bundle.image.tag) }}
    imagePullPolicy: {{ .root.Values.image.pullPolicy }}
    # Digests are checked by the service when it loads the bundle, not here.
    command: [cp, -R, {{ printf "%s/." .bundle.image.path }}, /copy/]
    securityContext:
      {{- include "muse.containerSecurity" . | nindent 6 }}
    resources:
      requests:
        cpu: 50m
        memory: 32Mi
      limits:
        memory: 256Mi
    volumeMounts:
      # Not where the image has it: a mount would hide it.
      - name: bundle
        mountPath: /copy
{{- end }}
{{- end -}}
