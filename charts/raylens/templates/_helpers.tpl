{{/* KubeRay allows a RayService 47 characters. */}}
{{- define "raylens.name" -}}
{{- $name := ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) (contains .Chart.Name .Release.Name) -}}
{{- $name | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{/* What selectors select by. app.kubernetes.io/name stays KubeRay's own on Ray's pods: its Services select by it. */}}
{{- define "raylens.selector" -}}
app.kubernetes.io/part-of: {{ include "raylens.name" . }}
{{- end }}

{{- define "raylens.labels" -}}
{{ include "raylens.selector" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "raylens.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Values.preset }}
{{- end }}

{{- define "raylens.service" -}}
{{ include "raylens.name" . }}-serve-svc
{{- end }}

{{/* The Serve config: the preset, the changes of `application`, and the names of the service. */}}
{{- define "raylens.serveConfig" -}}
{{- $config := .Files.Get (printf "files/%s.yaml" .Values.preset) | fromYaml -}}
{{- $application := index $config.applications 0 -}}
{{- $args := mergeOverwrite $application.args (deepCopy .Values.application.args) -}}
{{- if not (hasKey .Values.application.args "allowed_hosts") -}}
{{- $hosts := concat (list (include "raylens.service" .) "*.svc") .Values.hosts -}}
{{- if .Values.ingress.enabled -}}
{{- $hosts = concat $hosts .Values.ingress.hosts -}}
{{- end -}}
{{- $_ := set $args "allowed_hosts" (uniq $hosts) -}}
{{- end -}}
{{- $_ := set $application "args" $args -}}
{{- if .Values.application.deployments -}}
{{- $_ := set $application "deployments" .Values.application.deployments -}}
{{- end -}}
{{- if .Values.application.live -}}
{{- range $application.deployments -}}
{{- $_ := set . "user_config" $.Values.application.live -}}
{{- end -}}
{{- end -}}
{{- toYaml $config -}}
{{- end }}

{{- define "raylens.podSecurity" -}}
runAsNonRoot: true
runAsUser: 1000
runAsGroup: 100
fsGroup: 100
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "raylens.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "raylens.environment" -}}
- {name: HF_HOME, value: /var/cache/huggingface}
- name: HF_TOKEN
  valueFrom:
    secretKeyRef: {name: {{ .Values.secrets.huggingFace }}, key: token, optional: true}
- name: RAYLENS_WEBHOOK_SECRETS
  valueFrom:
    secretKeyRef: {name: {{ .Values.secrets.webhooks }}, key: secrets, optional: true}
{{- if eq .Values.jobs.store "sqlite" }}
{{- /* A folder in the volume, not the volume itself, whose owner is root. */}}
- {name: RAYLENS_JOBS__DATA_DIR, value: /var/lib/raylens/jobs}
- {name: RAYLENS_JOBS__STORE, value: sqlite}
- {name: RAYLENS_JOBS__BLOBS, value: /var/lib/raylens/jobs/blobs}
{{- else }}
- {name: RAYLENS_JOBS__DATA_DIR, value: /tmp/raylens}
- name: RAYLENS_JOBS__STORE
  valueFrom:
    secretKeyRef: {name: {{ .Values.jobs.postgres.secret }}, key: {{ .Values.jobs.postgres.key }}}
- name: RAYLENS_JOBS__BLOBS
  value: {{ required "jobs.postgres.blobs: a URL that every node reaches" .Values.jobs.postgres.blobs | quote }}
{{- end }}
- {name: XDG_CACHE_HOME, value: /tmp/cache}
- {name: TRITON_CACHE_DIR, value: /tmp/cache/triton}
- {name: CUDA_CACHE_PATH, value: /tmp/cache/cuda}
{{- range $name, $value := .Files.Get "files/environment.yaml" | fromYaml }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- with .Values.env }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "raylens.mounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: dshm, mountPath: /dev/shm}
- {name: huggingface, mountPath: /var/cache/huggingface}
- {name: keys, mountPath: /etc/raylens/keys, readOnly: true}
{{- end }}

{{/* Arguments: root, group, shared (whether the checkpoints are in one volume for all nodes). */}}
{{- define "raylens.volumes" -}}
- name: tmp
  emptyDir: {sizeLimit: 20Gi}
- name: dshm
  emptyDir: {medium: Memory, sizeLimit: {{ .group.sharedMemory }}}
- name: huggingface
{{- if .shared }}
  persistentVolumeClaim: {claimName: {{ include "raylens.name" .root }}-models}
{{- else }}
  emptyDir: {sizeLimit: {{ .root.Values.modelCache.size }}}
{{- end }}
- name: keys
  secret: {secretName: {{ .root.Values.secrets.keys }}, defaultMode: 0440}
{{- end }}

{{- define "raylens.placement" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* A group of workers. Arguments: root, group, name, shared. */}}
{{- define "raylens.workers" -}}
{{- $resources := deepCopy .group.resources -}}
{{- if .group.gpus -}}
{{- range $kind := list "requests" "limits" -}}
{{- $_ := set (index $resources $kind) $.group.gpuResource (int $.group.gpus) -}}
{{- end -}}
{{- end -}}
- groupName: {{ .name }}
  replicas: {{ .group.minReplicas }}
  minReplicas: {{ .group.minReplicas }}
  maxReplicas: {{ .group.maxReplicas }}
  rayStartParams: {}
  {{- if eq .name "front" }}
  resources: {front: "1"}
  {{- end }}
  template:
    metadata:
      labels:
        {{- include "raylens.selector" .root | nindent 8 }}
        app.kubernetes.io/component: {{ .name }}
    spec:
      serviceAccountName: {{ include "raylens.name" .root }}-worker
      automountServiceAccountToken: false
      terminationGracePeriodSeconds: {{ .root.Values.terminationGracePeriodSeconds }}
      {{- with .root.Values.image.pullSecrets }}
      imagePullSecrets:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      securityContext:
        {{- include "raylens.podSecurity" .root | nindent 8 }}
      {{- include "raylens.placement" .group | nindent 6 }}
      topologySpreadConstraints:
        - maxSkew: 1
          topologyKey: kubernetes.io/hostname
          whenUnsatisfiable: ScheduleAnyway
          labelSelector:
            matchLabels:
              {{- include "raylens.selector" .root | nindent 14 }}
              app.kubernetes.io/component: {{ .name }}
      containers:
        - name: ray-worker
          image: {{ include "raylens.image" .root }}
          imagePullPolicy: {{ .root.Values.image.pullPolicy }}
          securityContext:
            {{- include "raylens.containerSecurity" .root | nindent 12 }}
          resources:
            {{- toYaml $resources | nindent 12 }}
          ports:
            - {name: serve, containerPort: 8000}
            - {name: metrics, containerPort: 8080}
          env:
            {{- include "raylens.environment" .root | nindent 12 }}
            {{- range $name, $value := .root.Files.Get "files/worker-environment.yaml" | fromYaml }}
            - {name: {{ $name }}, value: {{ $value | quote }}}
            {{- end }}
          volumeMounts:
            {{- include "raylens.mounts" .root | nindent 12 }}
      volumes:
        {{- include "raylens.volumes" . | nindent 8 }}
{{- end }}
