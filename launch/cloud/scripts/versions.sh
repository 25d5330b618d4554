# Reports the versions of Python and jax that the job runs with here. Set before: PYTHON (empty: of the environment), ENVIRONMENT.
python="${PYTHON:-$ROOT/environments/$ENVIRONMENT/bin/python}"
found=$("$python" -c 'import sys; from importlib import metadata; print(sys.version.split()[0], metadata.version("jax"))' 2>&1) ||
  answer UNKNOWN "$(echo "$found" | tail -1)"
answer VERSIONS "$found"
