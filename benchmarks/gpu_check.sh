#!/usr/bin/env bash
# Everything that needs a GPU, in stages that each take less than ten minutes:
#
#     bash benchmarks/gpu_check.sh [build] [primitives] [tests] [sanitizer] [layers] [wgmma] [operators] [networks]
#
# All of them, in this order, if none is named. Needs nvcc and, as the peer, PyTorch for CUDA.
#   build       pip install with FASTNN_CUDA=ON, for the GPU that is here
#   primitives  each device primitive against NumPy: run first, for all else builds on them
#   tests       pytest -m gpu: every operator against its reference, runtime, graphs, large tensors
#   sanitizer   compute-sanitizer memcheck and racecheck over small cases of every operator
#   layers      the convolution table of ResNet-50 and VGG-16 in bf16, TF32 and fp32 beside cuDNN
#   wgmma       the table in bf16 and TF32 by the kernels for sm_90a (only once their primitives have passed)
#   operators   norms, pools, dropout, activations, optimizers beside PyTorch's
#   networks    ResNet-50 and VGG-16, training steps and inference, call by call and as graphs
# Results: gpu-<stage>.json in $OUT (default: benchmarks/results), to be committed.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-benchmarks/results}
mkdir -p "$out"
export FASTNN_CUDA_EMULATE=0 PYTHONUNBUFFERED=1
stages=("$@")
[ $# -gt 0 ] || stages=(build primitives tests sanitizer layers wgmma operators networks)

bench() {  # name, then what `fastnn bench` takes
  local name=$1
  shift
  fastnn bench "$@" --device cuda --peer torch --json "$out/gpu-$name.json" --html "$out/gpu-$name.html"
}

for stage in "${stages[@]}"; do
  printf '\n== %s\n' "$stage"
  case $stage in
    build)
      # 9.0 has instructions that only code for 9.0a may use.
      arch=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1 | tr -d .)
      [ "$arch" = 90 ] && arch=90a
      pip install --quiet ".[test]" --config-settings=cmake.define.FASTNN_CUDA=ON \
        --config-settings=cmake.define.FASTNN_CUDA_ARCHITECTURES="$arch-real"
      fastnn info ;;
    primitives) pytest -q tests/test_emulator.py -k primitives -rs ;;
    tests) pytest -q -m gpu -x --maxfail=20 ;;
    sanitizer)
      for tool in memcheck racecheck; do
        for family in conv norm pool reduce softmax loss optim; do
          echo "$tool $family"
          timeout 240 compute-sanitizer --tool "$tool" --error-exitcode 9 \
            python -m fastnn verify "$family" --device cuda | tail -1
        done
      done ;;
    layers) bench layers conv --dtype bfloat16,tf32,float32 --batch 64 --filter "n64" ;;
    wgmma) FASTNN_WGMMA=1 bench layers-wgmma conv --dtype bfloat16,tf32 --batch 64 --filter "n64" ;;
    operators) bench operators norm pool dropout activation softmax loss optim --dtype float32,bfloat16 ;;
    networks) bench networks train infer --dtype bfloat16,tf32 --compile ;;
    *)
      echo "gpu_check.sh: no stage $stage" >&2
      exit 2 ;;
  esac
done
