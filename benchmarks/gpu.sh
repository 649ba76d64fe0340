#!/usr/bin/env bash
# Everything that is to be measured on a machine with a GPU, from a clean
# checkout:
#
#   OUT=results MAML_JAX_DATA=DIR benchmarks/gpu.sh
#
# A call ends after LIMIT seconds; the next one goes on: parts that are done are
# skipped, the others begin again, and the training resumes. Variables:
#
#   OUT             what is found: log.txt, rows.jsonl, eval_RUN/, findings/,
#                   report.html, the checkpoint mini_5w1s/
#   STATE           what is done, and the run itself (default: $OUT/state)
#   PARTS           install,tests,bench,precision,compare,train,eval,findings,
#                   or some
#   LIMIT           seconds of one call (default 600)
#   MAML_JAX_DATA   prepared data with mini_imagenet; without it no training
#   PYTORCH_MAML    a checkout of fmu2/PyTorch-MAML, to compare with
#   LEARN2LEARN     a checkout of learnables/learn2learn, to compare with
#   TORCH_PYTHON    a Python that has PyTorch with CUDA
#   PYTHON          a Python that has maml_jax (default: .venv, made if missing)
#   TRY=1           small and on any device, to try this script
set -uo pipefail

OUT=$(realpath -m "${OUT:?say where the results go: OUT=DIR}")
STATE=$(realpath -m "${STATE:-$OUT/state}")
cd "$(dirname "$0")/.." || exit 1
PARTS=${PARTS:-install,tests,bench,precision,compare,train,eval,findings}
LIMIT=${LIMIT:-600}
TRY=${TRY:-}
PYTHON=${PYTHON:-$PWD/.venv/bin/python}
TORCH_PYTHON=${TORCH_PYTHON:-$PYTHON}
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1
export MAML_JAX_CACHE=${MAML_JAX_CACHE:-$STATE/xla}

MARGIN=20 # seconds kept for what ends a call
GROUPS_OF_BENCH='iteration compile memory sampling flops scaling'
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

say() { printf '%s %s\n' "$(date +%T)" "$*" | tee -a "$OUT/log.txt"; }

left() { echo $((LIMIT - MARGIN - SECONDS)); }

# step NAME COMMAND...: runs a command once, within the time that is left.
# Fails if the command does; ends the call when the time is over.
step() {
  local name=$1 status
  shift
  [[ -e $STATE/done/$name ]] && return 0
  if (($(left) < 10)); then
    finish 'time is over; call again to go on'
  fi
  say "$name"
  timeout --kill-after=10 --signal=INT "$(left)" "$@" 2>&1 |
    tee -a "$OUT/log.txt"
  status=${PIPESTATUS[0]}
  if ((status == 0)); then
    touch "$STATE/done/$name"
  elif (($(left) <= 0)); then
    finish "time is over during $name; call again to go on"
  else
    say "$name: failed ($status)"
    failures+=("$name")
    return 1
  fi
}

finish() {
  collect
  say "$1"
  ((${#failures[@]})) && say "failed: ${failures[*]}"
  exit $((${#failures[@]} > 0))
}

# Copies what the training has written so far to where it is looked for.
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
    say "error: $PYTHON has no JAX that sees a GPU"
    exit 1
  fi
}

part_tests() {
  step tests "$PYTHON" -m pytest -q "${TESTS[@]}" tests/test_ops.py \
    tests/test_inner.py tests/test_learner.py tests/test_golden.py
}

bench() {
  local name=$1
  shift
  step "$name" "$PYTHON" -m benchmarks.run --json "$OUT/rows.jsonl" \
    "${BENCH[@]}" "$@"
}

part_bench() {
  local group
  for group in $GROUPS_OF_BENCH; do
    bench "bench_$group" --only "$group"
  done
}

# Speed under each precision, and the accuracy of a short training.
part_precision() {
  local precision workdir
  for precision in $PRECISIONS; do
    bench "bench_$precision" --precision "$precision" \
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
    say 'compare: skipped, neither PYTORCH_MAML nor LEARN2LEARN is set'
    return
  fi
  if [[ -z $TRY ]] && ! "$TORCH_PYTHON" -c \
    'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
    say "compare: skipped, $TORCH_PYTHON has no PyTorch that sees the GPU"
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
  say 'training: skipped, no mini_imagenet in MAML_JAX_DATA'
  return 1
}

# The process id of the training, if it runs.
training() {
  local pid
  pid=$(cat "$STATE/train.pid" 2>/dev/null) || return
  ps -p "$pid" -o args= | grep -q main.py && echo "$pid"
}

# Measurements need the GPU for themselves: a training saves its state and ends.
stop_training() {
  local pid
  pid=$(training) || return 0
  say 'stopping the training, which resumes later'
  kill -TERM "$pid"
  while training >/dev/null; do sleep 1; done
}

start_training() {
  say 'training: begins, or resumes'
  setsid "$PYTHON" main.py --config="$CONFIG" --workdir="$WORKDIR" \
    "${TRAIN[@]}" </dev/null >>"$STATE/train.log" 2>&1 &
  echo $! >"$STATE/train.pid"
}

# In the background, so that it outlasts the call; watched as long as that lasts.
# One that ended unwatched is started again: if it was complete, it says so.
part_train() {
  local status
  has_data || return
  [[ -e $STATE/done/train ]] && return
  while training >/dev/null; do watch_training; done
  start_training
  sleep 1
  while training >/dev/null; do watch_training; done
  wait $!
  status=$?
  tail -n 3 "$STATE/train.log" | tee -a "$OUT/log.txt"
  if ((status == 0)); then
    touch "$STATE/done/train"
  else
    say "train: failed ($status); see $STATE/train.log"
    failures+=(train)
  fi
}

watch_training() {
  (($(left) > 0)) || finish 'the training runs on; call again to go on'
  sleep 2
}

# evaluate NAME WORKDIR [FLAG...]: with K=10; results are copied to OUT.
evaluate() {
  local name=$1 workdir=$2
  shift 2
  step "$name" "$PYTHON" main.py --mode=eval --workdir="$workdir" \
    --eval.num_steps=10 "$@" && mkdir -p "$OUT/eval_${workdir##*/}" &&
    cp "$workdir"/eval/* "$OUT/eval_${workdir##*/}"
}

# The paper's protocol (600 tasks, Q=1), the harder one beside baselines, and
# every way at once; then a page of it all, and the checkpoint by itself.
part_eval() {
  if [[ ! -e $STATE/done/train ]]; then
    say 'eval: skipped, the training is not done'
    return
  fi
  evaluate paper "$WORKDIR" --eval.num_tasks="$PAPER_TASKS" --eval.queries=1
  evaluate q15 "$WORKDIR" --eval.num_tasks="$EVAL_TASKS" --eval.queries=15 \
    --eval.baselines
  evaluate grid "$WORKDIR" --eval.num_tasks="$EVAL_TASKS" \
    --eval.queries=15 --eval.grid
  step report "$PYTHON" main.py --mode=report "$WORKDIR" \
    --output="$OUT/report.html"
  step export "$PYTHON" -m maml_jax.checkpoint "$WORKDIR" "$OUT/mini_5w1s"
}

# Five trainings of that kind: days of one GPU, in as many calls as it takes.
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
      finish "error: no part $part"
      ;;
  esac
done
finish 'all done'
