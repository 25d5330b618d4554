# Unpacks the code and makes the environment, each once. Set before: BUNDLE (sha256), BUNDLE_URL (empty: it was copied
# here), PYTHON (empty: make an environment with uv), ENVIRONMENT (its name, by content), HOST_PYTHON (its version).
mkdir -p "$ROOT/bundles" "$ROOT/environments"
exec 9>"$ROOT/prepare.lock"
flock 9

fetch() {
  local base="${STORAGE_EMULATOR_HOST:-https://storage.googleapis.com}" token
  token=$(metadata instance/service-accounts/default/token | sed -n 's/.*"access_token": *"\([^"]*\)".*/\1/p')
  curl -sS --fail --retry 5 -H "Authorization: Bearer $token" -o "$1" "$base$BUNDLE_URL"
}

code="$ROOT/bundles/$BUNDLE"
if [ ! -d "$code" ]; then
  archive="$HOME/.pod_job-$BUNDLE.tar.gz"
  if [ -n "$BUNDLE_URL" ] && ! fetch "$archive" 2>"$ROOT/error"; then answer FAILED "code: $(tail -1 "$ROOT/error")"; fi
  echo "$BUNDLE  $archive" | sha256sum --check --status || answer FAILED "code: $archive is not what was sent"
  rm -rf "$code.new" && mkdir "$code.new" && tar -xzf "$archive" -C "$code.new" && mv "$code.new" "$code"
  rm -f "$archive"
fi

made=reused
if [ -z "$PYTHON" ]; then
  environment="$ROOT/environments/$ENVIRONMENT"
  if [ ! -e "$environment/complete" ]; then
    made=made
    rm -rf "$environment"
    PATH="$HOME/.local/bin:$PATH"
    {
      # Where the system's Python is marked as its own, pip has to be allowed; older ones do not know the setting.
      command -v uv || PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --user uv
      uv venv --python "$HOST_PYTHON" "$environment" &&
        uv pip install --python "$environment/bin/python" -c "$code/constraints.txt" -r "$code/pyproject.toml" --extra tpu &&
        touch "$environment/complete"
    } >"$ROOT/environment.log" 2>&1
    # uv says why first, and ends with hints.
    why=$(grep -m1 -A2 -iE '^error|×' "$ROOT/environment.log" || tail -1 "$ROOT/environment.log")
    [ -e "$environment/complete" ] || answer FAILED "environment: $(echo "$why" | tr -s ' \n' ' ')"
  fi
fi
answer READY "$made"
