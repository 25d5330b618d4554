# Keeps stdin in a file only this user can read, for the next start. Set before: END, its last line.
umask 077
cat >"$ROOT/secrets.new"
# A connection that broke midway leaves less than all of it.
[ "$(tail -1 "$ROOT/secrets.new")" = "$END" ] || answer FAILED "secrets did not arrive whole"
mv "$ROOT/secrets.new" "$ROOT/secrets"
answer STORED
