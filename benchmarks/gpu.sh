#!/usr/bin/env bash
# Runs all measurements on a machine with a GPU, from a clean checkout:
#
#   OUT=results MAML_JAX_DATA=DIR benchmarks/gpu.sh
#
# Each call ends after LIMIT seconds; the next call continues. Completed steps
# are skipped, interrupted ones start over, and the training resumes. Variables:
#
#   OUT             directory of the results: log.txt, rows.jsonl, eval_RUN/,
#                   findings/, report.html, the checkpoint mini_5w1s/
#   STATE           directory of completed steps and runs (default: $OUT/state)
#   PARTS           some of install,tests,bench,precision,compare,train,eval,
#                   findings (default: all)
#   LIMIT           seconds per call (default: 600)
#   MAML_JAX_DATA   prepared data with mini_imagenet; required for training
#   PYTORCH_MAML    a checkout of fmu2/PyTorch-MAML to compare with
#   LEARN2LEARN     a checkout of learnables/learn2learn to compare with
#   TORCH_PYTHON    a Python with PyTorch and CUDA
#   PYTHON          a Python with maml_jax (default: .venv, created if missing)
#   TRY=1           small sizes on any device, to test this script
set -uo pipefail

OUT=$(realpath -m "${OUT:?set it to the directory of the results: OUT=DIR}")
STATE=$(realpath -m "${STATE:-$OUT/state}")
cd "$(dirname "$0")/.." || exit 1
PARTS=${PARTS:-install,tests,bench,precision,compare,train,eval,findings}
LIMIT=${LIMIT:-600}
TRY=${TRY:-}
PYTHON=${PYTHON:-$PWD/.venv/bin/python}
TORCH_PYTHON=${TORCH_PYTHON:-$PYTHON}
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1
export MAML_JAX_CACHE=${MAML_JAX_CACHE:-$STATE/xla}

MARGIN=20 # seconds reserved for the end of a call
BENCH_GROUPS='iteration compile memory sampling flops scaling'
PRECISIONS='tf32 bfloat16'
CONFIG=configs/mini_5w1s.py
WORKDIR=$STATE/mini_5w1s
PAPER_TASKS=600
EVAL_TASKS=10000
BENCH=() TESTS=() COMPARE=() TRAIN=() FINDINGS=()
export JAX_PLATFORMS=cuda
if [[ -n $TRY ]]; then
  PAPER_TASKS=4
  EVAL_TASKS=4
  BENCH=(--tiny --repeats=2)
  TESTS=(--collect-only)
  COMPARE=(--pairs=1 --workloads evaluation)
  TRAIN=(--config.train.steps_per_epoch=2 --config.train.num_epochs=1
    --config.val.num_tasks=2)
  FINDINGS=(--num_tasks=2 --many_tasks=3 "${TRAIN[@]}")
  unset JAX_PLATFORMS
fi

log() { printf '%s %s\n' "$(date +%T)" "$*" | tee -a "$OUT/log.txt"; }

seconds_left() { echo $((LIMIT - MARGIN - SECONDS)); }

# step NAME COMMAND...: runs a command within the remaining time, unless it is
# completed. Fails if the command fails; ends the call if the time is up.
step() {
  local name=$1 status
  shift
  [[ -e $STATE/done/$name ]] && return 0
  if (($(seconds_left) < 10)); then
    finish 'time limit reached; run again to continue'
  fi
  log "$name"
  timeout --kill-after=10 --signal=INT "$(seconds_left)" "$@" 2>&1 |
    tee -a "$OUT/log.txt"
  status=${PIPESTATUS[0]}
  if ((status == 0)); then
    touch "$STATE/done/$name"
  elif (($(seconds_left) <= 0)); then
    finish "time limit reached during $name; run again to continue"
  else
    log "$name: failed ($status)"
    failures+=("$name")
    return 1
  fi
}

finish() {
  collect
  log "$1"
  ((${#failures[@]})) && log "failed: ${failures[*]}"
  exit $((${#failures[@]} > 0))
}

# Copies the training metrics so far to OUT.
collect() {
  if [[ -e $WORKDIR/metrics.jsonl ]]; then
    cp "$WORKDIR/metrics.jsonl" "$OUT/train.jsonl"
  fi
}

has_gpu() {
  "$PYTHON" -c 'import jax, maml_jax; assert jax.default_backend() == "gpu"' \
    2>/dev/null
}

part_install() {
  if [[ -n $TRY ]] || has_gpu; then
    return
  fi
  step install make .venv/installed EXTRAS=dev,cuda
  if ! has_gpu; then
    log "error: JAX of $PYTHON does not find a GPU"
    exit 1
  fi
}

part_tests() {
  step tests "$PYTHON" -m pytest -q "${TESTS[@]}" tests/test_ops.py \
    tests/test_inner_loop.py tests/test_learner.py tests/test_golden.py
}

run_benchmarks() {
  local name=$1
  shift
  step "$name" "$PYTHON" -m benchmarks.run --json "$OUT/rows.jsonl" \
    "${BENCH[@]}" "$@"
}

part_bench() {
  local group
  for group in $BENCH_GROUPS; do
    run_benchmarks "bench_$group" --only "$group"
  done
}

# Measures speed and the accuracy of a short training at each precision.
part_precision() {
  local precision workdir
  for precision in $PRECISIONS; do
    run_benchmarks "bench_$precision" --precision "$precision" \
      --only iteration/5w1s iteration/5w5s iteration/first_order flops
  done
  has_data || return
  for precision in float32 $PRECISIONS; do
    workdir=$STATE/short_$precision
    step "short_$precision" "$PYTHON" main.py --config="$CONFIG" \
      --workdir="$workdir" --config.precision="$precision" \
      --config.train.num_epochs=10 "${TRAIN[@]}" &&
      evaluate "short_eval_$precision" "$workdir" --eval.queries=1 \
        --eval.num_tasks="$PAPER_TASKS" --config.precision="$precision"
  done
}

part_compare() {
  local peers=() precision
  [[ -n ${PYTORCH_MAML:-} ]] && peers+=(--pytorch_maml "$PYTORCH_MAML")
  [[ -n ${LEARN2LEARN:-} ]] && peers+=(--learn2learn "$LEARN2LEARN")
  if ((${#peers[@]} == 0)); then
    log 'compare: skipped, neither PYTORCH_MAML nor LEARN2LEARN is set'
    return
  fi
  if [[ -z $TRY ]] && ! "$TORCH_PYTHON" -c \
    'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
    log "compare: skipped, PyTorch of $TORCH_PYTHON does not find the GPU"
    return
  fi
  for precision in float32 tf32; do
    step "compare_$precision" "$PYTHON" -m benchmarks.compare "${peers[@]}" \
      --python "$TORCH_PYTHON" --precision "$precision" \
      --json "$OUT/rows.jsonl" "${COMPARE[@]}"
  done
}

has_data() {
  [[ -n ${MAML_JAX_DATA:-} && -d $MAML_JAX_DATA/mini_imagenet ]] && return
  log 'training: skipped, no mini_imagenet in MAML_JAX_DATA'
  return 1
}

# Prints the process id of the training if it is running.
training_pid() {
  local pid
  pid=$(cat "$STATE/train.pid" 2>/dev/null) || return
  ps -p "$pid" -o args= | grep -q main.py && echo "$pid"
}

# Stops the training, which saves its state, so that measurements have the GPU
# to themselves.
stop_training() {
  local pid
  pid=$(training_pid) || return 0
  log 'stopping the training; it resumes later'
  kill -TERM "$pid"
  while training_pid >/dev/null; do sleep 1; done
}

start_training() {
  log 'training: start or resume'
  setsid "$PYTHON" main.py --config="$CONFIG" --workdir="$WORKDIR" \
    "${TRAIN[@]}" </dev/null >>"$STATE/train.log" 2>&1 &
  echo $! >"$STATE/train.pid"
}

# Trains in the background, so that the training continues after the call, and
# waits for it. A training that ended between two calls is started again; it
# exits at once if it was complete.
part_train() {
  local status
  has_data || return
  [[ -e $STATE/done/train ]] && return
  while training_pid >/dev/null; do watch_training; done
  start_training
  sleep 1
  while training_pid >/dev/null; do watch_training; done
  wait $!
  status=$?
  tail -n 3 "$STATE/train.log" | tee -a "$OUT/log.txt"
  if ((status == 0)); then
    touch "$STATE/done/train"
  else
    log "train: failed ($status); see $STATE/train.log"
    failures+=(train)
  fi
}

watch_training() {
  (($(seconds_left) > 0)) ||
    finish 'training continues in the background; run again to wait for it'
  sleep 2
}

# evaluate NAME WORKDIR [FLAG...]: evaluates with K=10, copies results to OUT.
evaluate() {
  local name=$1 workdir=$2
  shift 2
  step "$name" "$PYTHON" main.py --mode=eval --workdir="$workdir" \
    --eval.num_steps=10 "$@" && mkdir -p "$OUT/eval_${workdir##*/}" &&
    cp "$workdir"/eval/* "$OUT/eval_${workdir##*/}"
}

# Evaluates with the paper's protocol (600 tasks, Q=1), with Q=15 and baselines,
# and in all modes; then writes a report and exports the checkpoint.
part_eval() {
  if [[ ! -e $STATE/done/train ]]; then
    log 'eval: skipped, the training is not complete'
    return
  fi
  evaluate paper "$WORKDIR" --eval.num_tasks="$PAPER_TASKS" --eval.queries=1
  evaluate q15 "$WORKDIR" --eval.num_tasks="$EVAL_TASKS" --eval.queries=15 \
    --eval.baselines
  evaluate grid "$WORKDIR" --eval.num_tasks="$EVAL_TASKS" \
    --eval.queries=15 --eval.grid
  step report "$PYTHON" main.py --mode=report "$WORKDIR" \
    --output="$OUT/report.html"
  step export "$PYTHON" -m maml_jax.experiment.checkpoint "$WORKDIR" "$OUT/mini_5w1s"
}

# Trains five such models: days on one GPU, over many calls.
part_findings() {
  has_data || return
  step findings "$PYTHON" -m studies.findings --scale=mini \
    --workdir="$STATE/findings" "${FINDINGS[@]}" &&
    mkdir -p "$OUT/findings" && cp "$STATE"/findings/findings.* "$OUT/findings"
}

mkdir -p "$OUT" "$STATE/done"
failures=()
for part in ${PARTS//,/ }; do
  case $part in
    tests | bench | precision | compare | findings) stop_training ;;
  esac
  case $part in
    install) part_install ;;
    tests) part_tests ;;
    bench) part_bench ;;
    precision) part_precision ;;
    compare) part_compare ;;
    train) part_train ;;
    eval) part_eval ;;
    findings) part_findings ;;
    *)
      failures+=("$part")
      finish "error: PARTS: unknown part $part"
      ;;
  esac
done
finish 'all done'
