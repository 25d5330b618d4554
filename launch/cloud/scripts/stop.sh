# Asks the job to end, or ends it. Set before: SIGNAL (TERM: it finishes what it holds; KILL: at once, with all it started),
# RUN (its run folder: a job of another run is left alone).
current=$(cat "$ROOT/attempt" 2>/dev/null)
here="$ROOT/attempts/$current"
flock -n "$ROOT/alive" true 2>/dev/null && answer NOT_RUNNING
run=$(cat "$ROOT/run" 2>/dev/null)
[ "${run:-$RUN}" = "$RUN" ] || answer NOT_RUNNING
pid=$(cat "$here/pid" 2>/dev/null)
[ -n "$pid" ] || answer FAILED "a job runs that left no pid"
if [ "$SIGNAL" = TERM ]; then
  kill -TERM "$pid"
  answer ASKED "$current"
fi
kill -KILL -- "-$(cat "$here/group")"
flock -w 10 "$ROOT/alive" true && answer KILLED "$current"
answer FAILED "the job did not end within 10 s"
