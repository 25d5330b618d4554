# Starts the job once per attempt, however often this runs. Set before: ATTEMPT, RUN, BUNDLE, PYTHON, ENVIRONMENT, JOB (the
# job's arguments as shell words), POD (its name in the API), LEFT_S (seconds that the pod may be paid for; empty: no
# limit), LIMIT (the limit, for people), HOSTS (names of all hosts of a file, with commas; empty of a pod in the cloud).
exec 9>"$ROOT/start.lock"
flock 9
current=$(cat "$ROOT/attempt" 2>/dev/null)
here="$ROOT/attempts/$current"
# Whoever runs the job holds the lock `alive` until its last process has ended.
run=$(cat "$ROOT/run" 2>/dev/null)
if ! flock -n "$ROOT/alive" true; then
  [ "${run:-$RUN}" = "$RUN" ] || answer FAILED "the job of $run runs here: end it with pod-job down, or use other hosts"
  answer ALREADY_RUNNING "$current"
fi
if [ "$current" = "$ATTEMPT" ] && [ -e "$here/exit" ]; then
  [ "$(cat "$here/exit")" = 0 ] && answer ALREADY_COMPLETE "$current"
  answer ENDED "$(cat "$here/exit")"
fi

# Deletes the pod when the limit is reached, whether the job has ended by then or hangs; tries until the pod is gone, and
# this host with it.
guard() {
  local token status
  sleep "$LEFT_S"
  flock -w "$GRACE_S" "$ROOT/alive" true # the job knows the limit too, and commits what it holds
  echo "$LIMIT: deleting $POD"
  while :; do
    token=$(metadata instance/service-accounts/default/token | sed -n 's/.*"access_token": *"\([^"]*\)".*/\1/p')
    status=$(curl -sS --max-time 60 -o "$ROOT/guard.answer" -w '%{http_code}' -X DELETE \
      -H "Authorization: Bearer $token" \
      "${CLOUDSDK_API_ENDPOINT_OVERRIDES_TPU:-https://tpu.googleapis.com/}v2/$POD$FORCE")
    case "$status" in
      200 | 404) echo "$POD is deleted" && return ;;
    esac
    echo "$POD cannot be deleted from here now, and costs until it is (HTTP status $status): $(head -c 500 "$ROOT/guard.answer")"
    sleep "$AGAIN_S"
  done
}
if [ -e "$ROOT/guard" ]; then kill -TERM -- "-$(cat "$ROOT/guard")" 2>/dev/null; rm -f "$ROOT/guard"; fi
if [ -n "$LEFT_S" ]; then
  case "$POD" in */queuedResources/*) FORCE='?force=true' ;; *) FORCE='' ;; esac
  GRACE_S=${POD_JOB_GRACE_S:-60} AGAIN_S=${POD_JOB_AGAIN_S:-30}
  export ROOT POD LEFT_S LIMIT FORCE GRACE_S AGAIN_S
  export POD_JOB_LEFT_S="$LEFT_S" POD_JOB_LIMIT="$LIMIT"
  setsid nohup bash -c "$(declare -f metadata guard)"'; echo $$ >"$ROOT/guard"; guard' </dev/null >"$ROOT/guard.log" 2>&1 9>&- &
fi

here="$ROOT/attempts/$ATTEMPT"
mkdir -p "$here"
echo "$RUN" >"$ROOT/run"
echo "$ATTEMPT" >"$ROOT/attempt"
python="${PYTHON:-$ROOT/environments/$ENVIRONMENT/bin/python}"
export POD_JOB_ATTEMPT="$ATTEMPT" POD_JOB_RUN="${RUN:-}" POD_JOB_HOST="$WORKER" PYTHONPATH="$ROOT/bundles/$BUNDLE" PYTHONUNBUFFERED=1
if [ -n "${HOSTS-}" ]; then export POD_JOB_HOSTS="$HOSTS"; fi
# One thread for each sum of a writer thread; and huge pages for what the devices send, which is fresh memory each time.
export OPENBLAS_NUM_THREADS=1 GLIBC_TUNABLES=glibc.malloc.hugetlb=1
cd "$ROOT/bundles/$BUNDLE" || answer FAILED "$ROOT/bundles/$BUNDLE is not there"
# In a session of its own, so that the end of this connection is not the job's; 9 closed, so that it does not hold it.
setsid nohup bash -c '
  exec 8>"$1/alive"
  flock 8
  if [ -e "$1/secrets" ]; then . "$1/secrets"; rm "$1/secrets"; fi
  here=$2
  shift 2
  echo $$ >"$here/group"
  "$@" &
  echo $! >"$here/pid"
  wait $!
  echo $? >"$here/exit.new" && mv "$here/exit.new" "$here/exit"
' runner "$ROOT" "$here" "$python" -m pod_job "${JOB[@]}" </dev/null >"$here/log" 2>&1 9>&- &
for _ in $(seq 100); do
  [ -e "$here/pid" ] && answer LAUNCHED "$ATTEMPT"
  sleep 0.1
done
answer FAILED "the job did not start within 10 s"
