# Measures the rate from this host to the run folder. Set before: RUN, WRITERS, OBJECTS (at most), BUNDLE, PYTHON, ENVIRONMENT.
exec 9>"$ROOT/bandwidth.lock"
flock 9 # gcloud may run this again while it runs
flock -n "$ROOT/alive" true || answer BUSY "a job runs here, and each would slow the other; measure before it, or when it has ended"
python="${PYTHON:-$ROOT/environments/$ENVIRONMENT/bin/python}"
export PYTHONPATH="$ROOT/bundles/$BUNDLE" OPENBLAS_NUM_THREADS=1 GLIBC_TUNABLES=glibc.malloc.hugetlb=1
cd "$ROOT/bundles/$BUNDLE" || answer FAILED "$ROOT/bundles/$BUNDLE is not there"
rates=$("$python" -m pod_job.measure_bucket "$RUN" --host "$WORKER" --writers "$WRITERS" --objects "$OBJECTS" 2>"$ROOT/error") ||
  answer FAILED "$(tail -1 "$ROOT/error" | sed 's/^error: //')"
answer MEASURED "$rates"
