# Unpacks the code and makes the environment, each once. Set before: BUNDLE (sha256), BUNDLE_URL (empty: it was copied
# here), PYTHON (empty: an environment is needed), ENVIRONMENT (its name, by content), ENVIRONMENT_URL (its archive; empty:
# make it with uv), ENVIRONMENT_SHA256 (of the archive), HOST_PYTHON (its version).
mkdir -p "$ROOT/bundles" "$ROOT/environments"
exec 9>"$ROOT/prepare.lock"
flock 9

# Downloads the object $1 to the file $2.
fetch() {
  local base="${STORAGE_EMULATOR_HOST:-https://storage.googleapis.com}" token
  token=$(metadata instance/service-accounts/default/token | sed -n 's/.*"access_token": *"\([^"]*\)".*/\1/p')
  curl -sS --fail --retry 5 -H "Authorization: Bearer $token" -o "$2" "$base$1"
}

code="$ROOT/bundles/$BUNDLE"
if [ ! -d "$code" ]; then
  archive="$HOME/.pod_job-$BUNDLE.tar.gz"
  if [ -n "$BUNDLE_URL" ] && ! fetch "$BUNDLE_URL" "$archive" 2>"$ROOT/error"; then answer FAILED "code: $(tail -1 "$ROOT/error")"; fi
  echo "$BUNDLE  $archive" | sha256sum --check --status || answer FAILED "code: $archive is not what was sent"
  rm -rf "$code.new" && mkdir "$code.new" && tar -xzf "$archive" -C "$code.new" && mv "$code.new" "$code"
  rm -f "$archive"
fi

# Unpacks an environment with a Python of its own: nothing but Cloud Storage has to be in reach.
unpack() {
  local archive="$ROOT/environment.tar.gz" new="$environment.new"
  fetch "$ENVIRONMENT_URL" "$archive" 2>"$ROOT/error" || answer FAILED "environment: $(tail -1 "$ROOT/error")"
  echo "$ENVIRONMENT_SHA256  $archive" | sha256sum --check --status || answer FAILED "environment: $archive is not what was sent"
  rm -rf "$new" && mkdir "$new"
  tar -xzf "$archive" -C "$new" 2>"$ROOT/error" || answer FAILED "environment: $(tail -1 "$ROOT/error")"
  rm -f "$archive"
  "$new/bin/python" -c '' 2>"$ROOT/error" || answer FAILED "environment: its Python does not run here: $(tail -1 "$ROOT/error")"
  touch "$new/complete" && mv "$new" "$environment"
}

# Installs the packages from an index.
install() {
  # All that is installed lies in one folder, which `clear` removes.
  PATH="$ROOT/tools/bin:$HOME/.local/bin:$PATH"
  export UV_CACHE_DIR="${UV_CACHE_DIR-$ROOT/cache}" UV_PYTHON_INSTALL_DIR="${UV_PYTHON_INSTALL_DIR-$ROOT/python}"
  {
    command -v uv || python3 -m pip install --target "$ROOT/tools" uv
    uv venv --python "$HOST_PYTHON" "$environment" &&
      uv pip install --python "$environment/bin/python" -c "$code/constraints.txt" -r "$code/pyproject.toml" --extra tpu &&
      touch "$environment/complete"
  } >"$ROOT/environment.log" 2>&1
  [ -e "$environment/complete" ] && return
  # uv says why first, and ends with hints.
  why=$(grep -m1 -A2 -iE '^error|×' "$ROOT/environment.log" || tail -1 "$ROOT/environment.log")
  fix=''
  grep -qiE 'dns error|error sending request|failed to fetch|new connection|requirement uv|connection (refused|reset)|unreachable|name resolution|timed out' "$ROOT/environment.log" &&
    fix='; hosts without a way out take it from cloud.environments=gs://bucket/folder'
  answer FAILED "environment: $(echo "$why" | tr -s ' \n' ' ')$fix"
}

made=reused
if [ -z "$PYTHON" ]; then
  environment="$ROOT/environments/$ENVIRONMENT"
  if [ ! -e "$environment/complete" ]; then
    made=made
    rm -rf "$environment"
    if [ -n "$ENVIRONMENT_URL" ]; then unpack; else install; fi
  fi
fi
answer READY "$made"
