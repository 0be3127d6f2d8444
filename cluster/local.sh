#!/usr/bin/env bash
# A Ray cluster of N nodes on this one machine, each in a network namespace of its own. Needs root and iproute2.
#
#   cluster/local.sh 3          start three nodes (1 is the head)
#   eval "$(cluster/local.sh env)"   address and token for `megu submit` in this shell
#   cluster/local.sh status     what runs where
#   cluster/local.sh remove 3   take node 3 away at once, as a preemption does
#   cluster/local.sh stop       end everything that this script started, and nothing else
#
# Environment: MEGU_LOCAL_NAME (megu), MEGU_LOCAL_DIR (/tmp/megu-local), MEGU_LOCAL_NET (10.213.7),
# MEGU_LOCAL_CPUS (logical CPUs per node, 4), MEGU_LOCAL_STORE_MB (object store per node, 256).
set -euo pipefail

name=${MEGU_LOCAL_NAME:-megu}
dir=${MEGU_LOCAL_DIR:-/tmp/megu-local}
net=${MEGU_LOCAL_NET:-10.213.7}
cpus=${MEGU_LOCAL_CPUS:-4}
store_mb=${MEGU_LOCAL_STORE_MB:-256}
here=$(cd "$(dirname "$0")/.." && pwd)
[[ -x $here/.venv/bin/ray ]] && export PATH="$here/.venv/bin:$PATH"
bridge=${name}br0
address=http://$net.1:8265

die() { echo "local.sh: $*" >&2; exit 2; }

namespaces() { ip netns list 2>/dev/null | awk -v p="^${name}-[0-9]+$" '$1 ~ p {print $1}' | sort -t- -k2 -n; }

drop() { # a namespace with all that runs in it; KILL, as a lost machine gives no notice either
  local ns=$1 pids
  for _ in 1 2 3 4 5; do
    pids=$(ip netns pids "$ns" 2>/dev/null || true)
    [[ -n $pids ]] || break
    # shellcheck disable=SC2086  # one word per process
    kill -KILL $pids 2>/dev/null || true
    sleep 0.2
  done
  # The kernel takes a namespace apart later, in its own time; a start that follows needs the name of its link at once.
  ip link delete "$ns" 2>/dev/null || true
  ip netns delete "$ns"
}

stop() {
  local ns
  for ns in $(namespaces); do drop "$ns"; done
  ip link show "$bridge" >/dev/null 2>&1 && ip link delete "$bridge"
  if [[ -f $dir/owner ]]; then rm -rf "$dir"; fi
}

node() { # namespace, address and Ray of node $1
  local k=$1 ns=$name-$1
  ip netns add "$ns"
  ip link add "$ns" type veth peer name eth0 netns "$ns"
  ip link set "$ns" master "$bridge" up
  ip -n "$ns" link set lo up
  ip -n "$ns" address add "$net.$k/24" dev eth0
  ip -n "$ns" link set eth0 up
  local start=(--node-ip-address="$net.$k" --num-cpus="$cpus" --object-store-memory=$((store_mb << 20)) --disable-usage-stats)
  if [[ $k == 1 ]]; then
    # The dashboard and job port listen on the bridge, which nothing outside this machine reaches, and ask for the token.
    start+=(--head --port=6379 --temp-dir="$dir/ray" --dashboard-host="$net.1" --dashboard-port=8265)
  else
    start+=(--address="$net.1:6379")
  fi
  # Each node sees a folder of its own at $dir/ray, as machines do: nodes that shared one would delete each other's files.
  # Idle workers started ahead, one per logical CPU of each node, would take the cores from the work itself.
  # The name of this machine is the loopback address for every node: gloo is told the interface instead.
  mkdir -p "$dir/ray" "$dir/node-$k"
  # shellcheck disable=SC2016  # the inner shell's own arguments
  ip netns exec "$ns" env RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$dir/token" RAY_enable_worker_prestart=0 \
    RAY_prestart_worker_first_driver=0 GLOO_SOCKET_IFNAME=eth0 bash -c 'mount --bind "$1" "$2" && shift 2 && exec ray start "$@"' \
    node "$dir/node-$k" "$dir/ray" "${start[@]}" >"$dir/node-$k.log" 2>&1 ||
    { tail -5 "$dir/node-$k.log" >&2; die "node $k does not start ($dir/node-$k.log)"; }
}

start() {
  local count=$1 k
  [[ $count -ge 1 && $count -le 200 ]] || die "N must be between 1 and 200, not $count"
  [[ -z $(namespaces) ]] || die "it runs already: cluster/local.sh stop"
  command -v ray >/dev/null || die "no ray on PATH: make setup"
  if [[ -e $dir && ! -f $dir/owner ]]; then die "$dir is not this script's: set MEGU_LOCAL_DIR"; fi
  trap stop EXIT # a start that fails leaves nothing
  rm -rf "$dir"
  (umask 077 && mkdir -p "$dir" && touch "$dir/owner" && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$dir/token")
  ip link add "$bridge" type bridge
  ip address add "$net.254/24" dev "$bridge"
  ip link set "$bridge" up
  for ((k = 1; k <= count; k++)); do node "$k"; done
  trap - EXIT
  echo "$count nodes run; job server: $address; eval \"\$(cluster/local.sh env)\" names it and the token to this shell"
}

[[ $# -ge 1 ]] || die "give a number of nodes, or env, status, remove K, stop"
[[ $1 == env || $EUID == 0 ]] || die "network namespaces need root"
case $1 in
  stop) stop ;;
  env)
    echo "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$dir/token RAY_API_SERVER_ADDRESS=$address"
    ;;
  status)
    for ns in $(namespaces); do echo "$ns $net.${ns##*-} $(ip netns pids "$ns" | wc -l) processes"; done
    ;;
  remove)
    namespaces | grep -qx "$name-${2:-}" || die "no node ${2:-}; there are: $(namespaces | tr '\n' ' ')"
    [[ $2 != 1 ]] || die "node 1 is the head: cluster/local.sh stop"
    drop "$name-$2"
    ;;
  *[!0-9]*) die "$1: give a number of nodes, or env, status, remove K, stop" ;;
  *) start "$1" ;;
esac
