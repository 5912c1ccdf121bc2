#!/usr/bin/env bash
# All that needs a GPU, in at most 8 minutes, on a bare machine with a torch for CUDA:
#
#     benchmarks/on_gpu.sh [FOLDER]        runs all parts; on_gpu.json and on_gpu.md go to FOLDER
#     benchmarks/on_gpu.sh --pack          beforehand, where there is a network: puts what is needed
#                                          beside torch and numpy into build/on_gpu, to be carried along
#
# PYTHON names the interpreter, OUT the folder if none is given. The exit status is 0 if all parts are done.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
packages=build/on_gpu
if [ "${1:-}" = "--pack" ]; then
    exec "$python" -m pip install --quiet --upgrade --no-deps --target "$packages" --constraint constraints.txt \
        transitions six blinker rich markdown-it-py mdurl pygments zlib-ng typer click shellingham annotated-doc \
        pytest pytest-timeout pluggy iniconfig packaging hypothesis sortedcontainers torchmetrics lightning-utilities
fi
export PYTHONPATH="$PWD:$PWD/benchmarks:$PWD/$packages${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" benchmarks/on_gpu.py --out "${1:-${OUT:-build/on_gpu_results}}"
