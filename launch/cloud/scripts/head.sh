# Comes before every script. One line of answer per host, in one write, with the host's index, as hosts talk at once.
set -u
ROOT="$HOME/.pod_job"
mkdir -p "$ROOT"
metadata() {
  curl -sS --fail --retry 5 --max-time 20 -H 'Metadata-Flavor: Google' \
    "http://${GCE_METADATA_IP:-metadata.google.internal}/computeMetadata/v1/$1"
}
# POD_JOB_WORKER is set where the launcher says which host this is.
WORKER=${POD_JOB_WORKER-$(metadata instance/attributes/agent-worker-number)} || { echo 'no metadata server' >&2; exit 1; }
answer() {
  printf 'pod-job %s %s %s\n' "$WORKER" "$1" "${2-}"
  exit 0
}
