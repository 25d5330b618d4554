# Reports the state of the job: RUNNING, EXITED with its code and the end of its log (base64), or NONE.
current=$(cat "$ROOT/attempt" 2>/dev/null)
here="$ROOT/attempts/$current"
[ -n "$current" ] || answer NONE
if ! flock -n "$ROOT/alive" true; then answer RUNNING "$current"; fi
# The runner itself killed leaves no exit code: 137, as of a job that was.
code=$(cat "$here/exit" 2>/dev/null || echo 137)
answer EXITED "$current $code $(tail -c "$TAIL" "$here/log" | base64 -w0)"
