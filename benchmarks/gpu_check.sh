#!/usr/bin/env bash
# Everything that needs a GPU, in stages:
#
#     bash benchmarks/gpu_check.sh [STAGE ...]
#
# All of them, in this order, if none is named. Needs nvcc and, as the peer, PyTorch for CUDA; no network where
# what pyproject.toml asks for is installed.
#   build            installs this source for the GPU that is here, unless that was done; or FASTNN_WHEEL=path
#   primitives       each device primitive against NumPy: run first, for all else builds on them
#   tests            the tests marked gpu, in several processes: every operator against its reference, runtime, graphs,
#                    large tensors; then those of warpgroup products; last as if the GPU were a small one
#   shapes           the property tests: every operator on random shapes
#   sanitizer        compute-sanitizer's memcheck and racecheck over small cases of some operators
#   layers-DTYPE     the convolution table at 64 images beside cuDNN: bfloat16, tf32, float32
#   wgmma-DTYPE      the same by the kernels for sm_90a (only once their primitives have passed): bfloat16, tf32
#   operators-DTYPE  norms, pools, dropout, activations, optimizers beside PyTorch's: float32, bfloat16
#   networks-DTYPE   ResNet-50 and VGG-16, training and inference, call by call and as graphs: bfloat16, tf32
#   networks-compiled-DTYPE  the same beside torch.compile, too, which takes minutes
# A stage is stopped after STAGE_LIMIT seconds (570), all together after LIMIT seconds. docs/cuda.md has a plan for
# a machine that is lent for minutes.
# $OUT (default: benchmarks/results) gets <GPU>-<stage>.json (h200-layers-bfloat16.json), to be committed,
# gpu-check.log, gpu-sanitizer.log and primitives.txt. Where OUT is set and gets more than eight files, all but
# gpu-check.log are packed into results.tgz.
# Only a failed build keeps later stages from running: they would be about another source. The exit code is 1 if a
# stage failed, else 77 if one did not run.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
out=${OUT:-benchmarks/results}
limit=${LIMIT:-1000000}
most=${STAGE_LIMIT:-570}
mkdir -p "$out" && log=$out/gpu-check.log && : >"$log" && started=$(mktemp) || exit
export FASTNN_CUDA_EMULATE=0 PYTHONUNBUFFERED=1
export PATH=${CUDA_HOME:+$CUDA_HOME/bin:}$PATH:/usr/local/cuda/bin
export CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}  # where there is no ninja, make takes one core
known=(build primitives tests shapes sanitizer layers-bfloat16 layers-tf32 layers-float32 wgmma-bfloat16 wgmma-tf32
  operators-float32 operators-bfloat16 networks-bfloat16 networks-tf32 networks-compiled-bfloat16
  networks-compiled-tf32)
stages=("$@")
[ $# -gt 0 ] || stages=("${known[@]}")
for stage in "${stages[@]}"; do
  if [[ " ${known[*]} " != *" $stage "* ]]; then
    echo "gpu_check.sh: no stage $stage; there are ${known[*]}" >&2
    exit 2
  fi
done

# What a build without network takes as it is there.
needs="hypothesis, ml_dtypes, numpy, pybind11, pytest, safetensors, scikit_build_core, tqdm"
# Whose cases have a process each (fastnn.verify.FAMILIES).
families=(conv matmul norm pool activation dropout elementwise interpolate loss optim reduce shape softmax)
# What the sanitizer looks at: FASTNN_WGMMA, operator, cases.
small=(
  "0 conv2d n2c16h8w8_oc24_k3p1_bf16 n2c32h9w8_oc40_k3s2p1_f32 n2c24h7w7_oc24_k3p1g24_bf16"
  "0 matmul m17k33n65_f32 m15k31n33_bf16"
  "0 batch_norm n2c16h6w6_relu_res_f32 n2c24h6w6_bf16"
  "0 layer_norm n9c1000_d1_f32 n6c48_d1_bf16"
  "0 softmax n4c1000_d1_f32 n2c17h3w3_d1_bf16"
  "0 sum s3x1000_d1_f32 s300x19_d0_keep_bf16"
  "0 max_pool2d n2c17h8w8_k3s2p1_f32 n2c24h7w7_k3s2p1_bf16"
  "0 cross_entropy n4c10_f32 n2c9h3w3_wt_bf16"
  "0 adam_step images_step1_f32"
  "1 conv2d n2c64h12w13_oc72_k3p1_relu_res_bf16 n2c128h9w8_oc130_k3s2p1_nobias_bf16"
)

left() {
  local all=$((limit - SECONDS)) own=$((begin + most - SECONDS))
  echo $((all < own ? all : own))
}

within() {  # seconds at most, then the command; the stage ends where no time is left
  local seconds
  seconds=$(left)
  [ "$seconds" -gt 0 ] || exit 124
  [ "$seconds" -lt "$1" ] || seconds=$1
  shift
  timeout --signal=INT --kill-after=10 "$seconds" "$@"
}

package() {  # where the fastnn is that would be imported
  python3 -c 'import importlib.util as u; print(*u.find_spec("fastnn").submodule_search_locations)'
}

digest() {  # of what is installed, the source and the GPU
  local installed
  installed=$(package 2>/dev/null) || return 0
  { echo "$arch"
    find csrc cmake CMakeLists.txt pyproject.toml src "$installed" -type f ! -name '*.pyc' | sort |
      xargs -d '\n' sha256sum; } | sha256sum
}

capability() {  # 9.0 as 90
  nvidia-smi --id=0 --query-gpu=compute_cap --format=csv,noheader | tr -d .
}

build() {
  local arch how=(".[test]") stamp=build/gpu_check.stamp
  if [ -n "${FASTNN_WHEEL:-}" ]; then
    within "$most" python3 -m pip install --quiet --no-index --no-deps --force-reinstall "$FASTNN_WHEEL"
    diff -rq -x '*.so' -x __pycache__ src/fastnn "$(package)"
    echo "$FASTNN_WHEEL has the Python code of this source; that it has its kernels is taken on trust"
  else
    arch=$(capability)
    # 9.0 has instructions that only code for 9.0a may use.
    [ "$arch" != 90 ] || arch=90a
    if [ -f $stamp ] && [ "$(digest)" = "$(cat $stamp)" ]; then
      echo "this source is installed"
    else
      if python3 -c "import $needs"; then
        how=(--no-build-isolation --no-deps --no-index .)
      else
        echo "so the build is left to pip, which needs a network"
      fi
      within "$most" python3 -m pip install --quiet "${how[@]}" --config-settings=cmake.define.FASTNN_CUDA=ON \
        --config-settings=cmake.define.FASTNN_CUDA_ARCHITECTURES="$arch-real"
      mkdir -p build
      digest >$stamp
    fi
  fi
  if [ "$(package)" = "$PWD/src/fastnn" ]; then
    echo "python3 imports src/fastnn, not what was installed (PYTHONPATH, or an editable install)"
    exit 1
  fi
  python3 -m fastnn info
}

gpu() {  # a sum on it: the module is there, and has code for it
  within 60 python3 -c 'import fastnn
x = fastnn.ones(5, device="cuda")
assert (x + x).sum().item() == 10
print(fastnn.__path__[0], "on", fastnn.cuda.get_device_name("cuda"))'
}

uses() {  # tensor_cores or wgmma: other kernels would take over without a word
  within 60 python3 -c 'import sys, fastnn
said = fastnn.backends.cuda.tensor_cores("cuda")
assert said.startswith("used"), f"tensor cores are {said}"
if sys.argv[1] == "wgmma":
    assert fastnn.device.cuda_module().has_wgmma(0), "no warpgroup products: not code for 9.0a"' "$1"
}

# A stage of several parts: one that fails, or takes too long, does not stop the next.
failed=() missed=() doubtful=()
has_time() {  # a part's name, and the seconds without which it is not begun
  [ "$(left)" -lt "$2" ] || return 0
  missed+=("$1")
  return 1
}
part() {  # its name and limit, then the command
  local what=$1 most_of_it=$2 status=0
  shift 2
  has_time "$what" 10 || return 0
  within "$most_of_it" "$@" || status=$?
  [ "$status" -eq 0 ] || failed+=("$what: exit code $status")
}
sum_up() {
  local what
  for what in "${missed[@]}"; do echo "not run for lack of time: $what"; done
  for what in "${doubtful[@]}"; do echo "to be looked at, not a failure: $what"; done
  for what in "${failed[@]}"; do echo "failed: $what"; done
  [ ${#failed[@]} -eq 0 ] || exit 1
  [ ${#missed[@]} -eq 0 ] || exit 77
}

# A line for each test as it ends (-v), and where a test hangs, Python's stacks. Warnings of other libraries' newer
# versions are none of a GPU's faults.
pytest=(python3 -m pytest -v -W default --maxfail=20 -o faulthandler_timeout=30)

# In several processes, for an error on a GPU may be every later test's: one for each family of operators, one for each
# file about the runtime, one for the few tests of the others. Then what uses warpgroup products, which no GPU has run;
# and once more with grids for 4 multiprocessors, where small cases take several tiles to a block.
tests() {
  local family file files rest=() new="warpgroup or wgmma or tensor_memory"
  mapfile -t files < <(grep -l 'pytest\.mark\.gpu' tests/test_*.py)
  for family in "${families[@]}"; do
    part "cases of $family" 60 "${pytest[@]}" -m "gpu and $family" tests/test_cases.py
  done
  for file in "${files[@]}"; do
    case $file in
      tests/test_cases.py) ;;
      tests/test_cuda_interop.py) interop "$file" ;;
      tests/test_cuda*.py) part "$file" 90 "${pytest[@]}" -m gpu -k "not ($new)" "$file" ;;
      *) rest+=("$file") ;;
    esac
  done
  part "other files" 90 "${pytest[@]}" -m gpu -k "not ($new)" "${rest[@]}"
  if [ "$(capability)" = 90 ] && [ "$(left)" -ge 10 ]; then  # all other GPUs skip them
    uses wgmma || failed+=("warpgroup products: they would not be used")
  fi
  part "warpgroup products" 90 "${pytest[@]}" -m gpu -k "$new" "${files[@]}"
  export FASTNN_MULTIPROCESSORS=4
  part "cases for 4 multiprocessors" 120 "${pytest[@]}" -m gpu tests/test_cases.py
  part "other files for 4 multiprocessors" 90 "${pytest[@]}" -m gpu -k "not ($new)" "${rest[@]}"
  part "warpgroup products for 4 multiprocessors" 90 "${pytest[@]}" -m gpu -k "$new" "${files[@]}"
  sum_up
}

interop() {  # the file, with each library that is there, when no test may be skipped
  local peer which
  for peer in torch cupy; do
    [ "$peer" = cupy ] && which=cupy || which="not cupy"
    if python3 -c "import importlib.util as u, sys; sys.exit(u.find_spec('$peer') is None)"; then
      FASTNN_NO_SKIP=1 part "exchange with $peer" 60 "${pytest[@]}" -m gpu -k "$which" "$1"
    else
      echo "$peer is not here: no exchange with it"
    fi
  done
}

shapes() {  # those tests of hypothesis alone, whose cases harness.py then runs on the GPU alone
  local file files
  mapfile -t files < <(grep -l check_everywhere tests/test_*.py)
  for file in "${files[@]}"; do
    FASTNN_CHECK_ON=cuda part "$file" 90 "${pytest[@]}" -m hypothesis "$file"
  done
  sum_up
}

sanitizer() {
  local all=$out/gpu-sanitizer.log one wgmma tool line
  if ! command -v compute-sanitizer; then
    echo "compute-sanitizer is not here"
    exit 77
  fi
  : >"$all"
  one=$(mktemp)
  for wgmma in 0 1; do  # last, what no GPU has run
    for tool in memcheck racecheck; do
      for line in "${small[@]}"; do
        [ "${line%% *}" != "$wgmma" ] || sanitize "$tool" "$wgmma" "${line#* }"
      done
    done
  done
  rm "$one"
  sum_up
}

sanitize() {  # with which tool, by warpgroups or not, an operator and cases
  local what="$1 ${3%% *}" status=0 tool=(--tool "$1")
  [ "$2" = 0 ] || what="$what by warpgroups"
  # That a call of the driver fails, as one that asks whether memory is its own, is no finding.
  [ "$1" = racecheck ] || tool+=(--report-api-errors no)
  has_time "$what" 20 || return 0
  # shellcheck disable=SC2086  # each case is a word
  FASTNN_WGMMA=$2 within 100 compute-sanitizer "${tool[@]}" --error-exitcode 9 --print-limit 20 \
    python3 -m fastnn verify $3 --device cuda >"$one" 2>&1 || status=$?
  { echo "== $what: exit code $status" && cat "$one"; } >>"$all"
  if grep -q 'Device not supported' "$one"; then
    echo "compute-sanitizer refuses this device"
    exit 77
  fi
  # Its summary shows that it watched.
  if [ "$status" -eq 0 ] && grep -q 'SUMMARY: 0 ' "$one"; then
    echo "$what: clean"
  else
    # Of barriers that count bytes, and of the accelerator's copies, a racecheck may know nothing.
    [ "$1 $2" = "racecheck 1" ] && doubtful+=("$what") || failed+=("$what")
    echo "$what: exit code $status"
    grep -m 30 '^=========' "$one" || true
    echo "..."
    tail -n 12 "$one"
  fi
}

gpu_name() {  # NVIDIA H200 as h200
  nvidia-smi --id=0 --query-gpu=name --format=csv,noheader | tr '[:upper:]' '[:lower:]' |
    sed 's/^nvidia *//; s/[^a-z0-9][^a-z0-9]*/-/g'
}

bench() {  # of the stage's dtype, with the peer
  local dtype=${stage##*-}
  within 100 python3 -c 'import torch; assert torch.cuda.is_available(), "this PyTorch has no GPU"'
  [ "$dtype" = float32 ] || uses "$([ "${FASTNN_WGMMA:-0}" = 1 ] && echo wgmma || echo tensor_cores)"
  within "$most" python3 -m fastnn bench "$@" --dtype "$dtype" --device cuda --peer torch \
    --json "$out/$(gpu_name)-$stage.json"
}

run() {
  printf '\n== %s\n' "$stage"
  if [ "$built" = no ]; then
    echo "not run: the build failed"
    exit 77
  fi
  if [ "$(left)" -le 0 ]; then
    echo "not run: no time is left"
    exit 77
  fi
  case $stage in
    build) ;;
    primitives) gpu || echo "this GPU fails before the primitives are run: they may say why" ;;
    *) gpu ;;
  esac
  case $stage in
    primitives)
      OUT=$out FASTNN_NO_SKIP=1 within "$most" python3 -m pytest -q -W default \
        'tests/test_emulator.py::test_device_primitives_do_what_numpy_says[gpu]' ;;
    layers-*) bench conv --batch 64 --filter n64 ;;
    wgmma-*) FASTNN_WGMMA=1 bench conv --batch 64 --filter n64 ;;
    operators-*) bench norm pool dropout activation softmax loss optim ;;
    networks-compiled-*) bench train infer --compile ;;
    networks-*) bench train infer ;;
    *) "$stage" ;;
  esac
}

pack() {  # a machine that is lent may give back eight files of a command
  local made
  mapfile -t made < <(cd "$out" && find . -type f -newer "$started" ! -name gpu-check.log ! -name results.tgz)
  [ -n "${OUT:-}" ] && [ ${#made[@]} -ge 8 ] || return 0
  tar -C "$out" -czf "$out/results.tgz" "${made[@]}" && (cd "$out" && rm "${made[@]}")
}

built=yes
worst=0
table=$(printf '%-26s %-28s %s' stage result seconds)
for stage in "${stages[@]}"; do
  begin=$SECONDS
  (set -e; run) 2>&1 | tee -a "$log"
  status=${PIPESTATUS[0]}
  case $status in
    0) result=passed ;;
    77) result="NOT RUN" ;;
    124 | 137) result="FAILED: out of time" ;;
    *) result="FAILED: exit code $status" ;;
  esac
  [ "$status" -eq 0 ] || [ "$stage" != build ] || built=no
  [ "$status" -eq 0 ] || [ "$worst" -eq 1 ] || worst=$((status == 77 ? 77 : 1))
  table+=$'\n'$(printf '%-26s %-28s %7d' "$stage" "$result" $((SECONDS - begin)))
done
printf '\n%s\n' "$table" | tee -a "$log"
pack
rm "$started"
exit "$worst"
