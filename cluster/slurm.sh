#!/usr/bin/env bash
# A verb on a Ray cluster made of a Slurm allocation, which ends with the verb:
#   sbatch cluster/slurm.sh unlearn data=parquet data.path=/shared/cifar10 … run.dir=/shared/runs
# Submitting the same again continues the run. MEGU_BIN: folder of `megu` and `ray`, where they are not on PATH.
#SBATCH --job-name=megu
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=4
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
set -euo pipefail

[[ $# -ge 1 ]] || { echo "slurm.sh: give a verb and its settings, as to megu" >&2; exit 2; }
[[ -n ${SLURM_JOB_ID:-} ]] || { echo "slurm.sh: start it with sbatch" >&2; exit 2; }
[[ -n ${MEGU_BIN:-} ]] && export PATH="$MEGU_BIN:$PATH"

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
# Several jobs, also of other people, may share a machine: ports and folders are the job's own, and Ray asks for a token.
port=$((20000 + SLURM_JOB_ID % 20000))
private=${MEGU_SLURM_DIR:-$HOME/.megu}/$SLURM_JOB_ID # on storage that the nodes share
(umask 077 && mkdir -p "$private" && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$private/token")
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$private/token
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}')

# shellcheck disable=SC2329  # the trap calls it
finish() {
  local running
  running=$(jobs -p)
  # shellcheck disable=SC2086  # one word per process
  [[ -z $running ]] || kill $running 2>/dev/null || true
  wait || true
  rm -rf "$private"
}
trap finish EXIT

ray_on() { # node, options of ray start
  local node=$1
  shift
  srun --nodes=1 --ntasks=1 --nodelist="$node" ray start --block --disable-usage-stats \
    --num-cpus="${SLURM_CPUS_PER_TASK:-1}" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" "$@" &
}

ray_on "$head" --head --node-ip-address="$address" --port="$port" --include-dashboard=false \
  --temp-dir="/tmp/ray-$SLURM_JOB_ID"
for _ in {1..120}; do # the head's port, before others look for it
  (exec 3<>"/dev/tcp/$address/$port") 2>/dev/null && break
  sleep 1
done
for node in "${nodes[@]:1}"; do ray_on "$node" --address="$address:$port"; done

cat >"$private/wait.py" <<'PY'
import sys, time
import ray

deadline = time.time() + 300
while True:
    try:
        if not ray.is_initialized():
            ray.init(address=sys.argv[1], logging_level="error")
        alive = sum(node["Alive"] for node in ray.nodes())
        if alive >= int(sys.argv[2]):
            break
        why = f"{alive} of {sys.argv[2]} nodes"
    except (ConnectionError, RuntimeError) as error:
        why = str(error)
    if time.time() > deadline:
        sys.exit(f"slurm.sh: the cluster is not up after 300 s: {why}")
    time.sleep(2)
PY
on_head() { srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" "$@"; }
on_head python "$private/wait.py" "$address:$port" "${#nodes[@]}"
on_head megu "$@" run.address="$address:$port" &
verb=$!
trap 'kill -TERM "$verb" 2>/dev/null || true' TERM # time is up: megu ends so that it can be continued
code=0
wait "$verb" || code=$?
if kill -0 "$verb" 2>/dev/null; then wait "$verb" || code=$?; fi
exit "$code"
