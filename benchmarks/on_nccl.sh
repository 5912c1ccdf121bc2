#!/usr/bin/env bash
# Ranks on GPUs over NCCL, on one machine or several: a rank is killed and restarted, with DDP and with fully_shard,
# and the run must end with the bits of an undisturbed one; then what it costs that ranks agree.
#
#     benchmarks/on_nccl.sh FOLDER                                    one machine, all its GPUs
#     NNODES=2 RDZV=host:29500 benchmarks/on_nccl.sh FOLDER           on each of two machines; all see FOLDER
#
# PYTHON names the interpreter, RANKS the processes a machine (gpu: one for each GPU). Without a GPU, RANKS=2 runs all
# of it over gloo. The exit status is 0 if all is as it should be.
set -uo pipefail
cd "$(dirname "$0")/.."
folder=${1:?a folder for the runs, visible to all machines}
python=${PYTHON:-python3}
ranks=${RANKS:-gpu}
export PYTHONPATH="$PWD:$PWD/benchmarks${PYTHONPATH:+:$PYTHONPATH}"
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
mkdir -p "$folder"

torchrun=("$python" -m torch.distributed.run --nproc-per-node "$ranks" --max-restarts 3)
if [ -n "${RDZV:-}" ]; then
    torchrun+=(--nnodes "${NNODES:?how many machines}" --rdzv-backend c10d --rdzv-endpoint "$RDZV" --rdzv-id on_nccl)
else
    torchrun+=(--standalone)
fi

status=0
for how in ddp fsdp; do
    for what in whole killed; do
        "${torchrun[@]}" benchmarks/on_nccl.py "$folder" "$how" "$what" || { echo "$how, $what: FAILED"; status=1; }
    done
    "$python" - "$folder" "$how" <<'PYTHON' || status=1
import sys
import torch
whole, killed = (torch.load(f"{sys.argv[1]}/{sys.argv[2]}-{what}.pt") for what in ("whole", "killed"))
same = all(torch.equal(one, other) for one, other in zip(whole, killed, strict=True))
print(f"{sys.argv[2]}: the killed run ended with {'the same bits' if same else 'OTHER WEIGHTS'}")
sys.exit(not same)
PYTHON
    "$python" -m statemachine_trainer inspect "$folder/$how-killed" | grep restarts || status=1
done
"${torchrun[@]}" benchmarks/ranks.py --here --compute || status=1
exit $status
