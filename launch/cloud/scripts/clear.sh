# Ends the job and removes all that the launcher keeps here. Set before: LEAVING_S (seconds for the job to end by itself), RUN
# (its run folder: a job of another run is left alone).
current=$(cat "$ROOT/attempt" 2>/dev/null)
run=$(cat "$ROOT/run" 2>/dev/null)
if [ "${run:-$RUN}" != "$RUN" ] && ! flock -n "$ROOT/alive" true; then answer FAILED "the job of $run runs here"; fi
if ! flock -w "$LEAVING_S" "$ROOT/alive" true; then
  group=$(cat "$ROOT/attempts/$current/group" 2>/dev/null)
  [ -n "$group" ] || answer FAILED "a job runs that left no pid"
  kill -KILL -- "-$group"
  flock -w 10 "$ROOT/alive" true || answer FAILED "the job did not end within 10 s"
fi
rm -rf "$ROOT" "$HOME"/.pod_job-*.tar.gz
[ -e "$ROOT" ] && answer FAILED "$ROOT cannot be removed"
answer CLEARED
