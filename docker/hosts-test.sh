#!/usr/bin/env bash
# One MPI job across two hosts, without a second machine: docker/hosts-test.sh [times, default 3]
#
# The hosts are two network namespaces joined by a virtual cable. Each has its own address, host
# name, processes and shared memory, so that ranks on different hosts can only talk over TCP, as on
# a cluster without a special network. Checked for 2 and 4 ranks, each time: every rank sits where it
# should, and the energies are those of a run on one host. Needs root; exits with 77 where the
# machine does not allow it, and leaves nothing behind.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
times=${1:-3}
seconds=${LIMIT:-180} # that a job may take
bin=$PWD/.venv/bin
export OMP_NUM_THREADS=1

skip() { echo "hosts-test: skipped: $*" >&2; exit 77; }

[ "$(id -u)" = 0 ] || skip "only root can make network namespaces"
for tool in ip unshare timeout; do
  command -v $tool >/dev/null || skip "there is no '$tool' (Debian, Ubuntu: iproute2, util-linux, coreutils)"
done
[ -x "$bin/mpirun" ] || skip "there is no $bin/mpirun: run ./setup.sh first"

# Names that nobody else uses: several of these tests may run on one machine.
hosts=("a$$" "b$$")
work=$(mktemp -d)
# shellcheck disable=SC2317  # called by the trap
clean() {
  local host
  for host in "${hosts[@]}"; do
    ip netns pids "$host" 2>/dev/null | xargs -r kill -9 2>/dev/null || true
    ip netns del "$host" 2>/dev/null || true
    rm -rf "/etc/netns/$host"
  done
  rmdir /etc/netns 2>/dev/null || true
  rm -rf "$work"
}
trap clean EXIT
trap 'exit 130' INT TERM HUP

# The cable is made inside the namespaces, so that it cannot collide with a device outside.
connect() {
  local i
  for i in 0 1; do
    ip netns add "${hosts[i]}" || return
    mkdir -p "/etc/netns/${hosts[i]}"
    printf '127.0.0.1 localhost\n10.77.0.1 %s\n10.77.0.2 %s\n' "${hosts[@]}" \
      >"/etc/netns/${hosts[i]}/hosts"
    ip -n "${hosts[i]}" link set lo up || return
  done
  ip link add eth0 netns "${hosts[0]}" type veth peer name eth0 netns "${hosts[1]}" || return
  for i in 0 1; do
    ip -n "${hosts[i]}" addr add "10.77.0.$((i + 1))/24" dev eth0 || return
    ip -n "${hosts[i]}" link set eth0 up || return
  done
}
connect 2>"$work/log" || skip "no network namespaces here: $(tail -n 1 "$work/log")"

# Stands in for ssh: on-host [options] HOST COMMAND... When it ends, everything it started does.
cat >"$work/on-host" <<'END'
#!/bin/bash
while [[ $1 == -* ]]; do shift; done
host=$1
shift
exec ip netns exec "$host" unshare --uts --ipc --mount --pid --fork --kill-child --mount-proc \
  bash -c 'hostname "$0" && mount -t tmpfs tmpfs /dev/shm && exec bash -c "$1"' "$host" "$*"
END
chmod +x "$work/on-host"
"$work/on-host" "${hosts[0]}" true 2>"$work/log" || skip "no namespaces here: $(tail -n 1 "$work/log")"

one_host() {
  timeout -k 5 "$seconds" "$bin/mpirun" -n "$1" "$bin/python" docker/hosts_job.py </dev/null
}

# OFI's plain TCP: UCX, the default transport, now and then waits for ever between namespaces.
two_hosts() {
  timeout -k 5 "$seconds" "$work/on-host" "${hosts[0]}" \
    "cd '$PWD' && MPIR_CVAR_CH4_NETMOD=ofi FI_PROVIDER=tcp '$bin/mpirun' -launcher ssh \
    -launcher-exec '$work/on-host' -hosts ${hosts[0]},${hosts[1]} -ppn $(($1 / 2)) -n $1 \
    '$bin/python' docker/hosts_job.py" </dev/null
}

# The largest relative difference of the energies, when every rank is where it should be.
compare() {
  "$bin/python" -c '
import json, sys
one, two = (json.loads(open(name).read().splitlines()[-1]) for name in sys.argv[1:3])
hosts, half = sys.argv[3:5], len(two["hosts"]) // 2
expected = [host for host in hosts for _ in range(half)]
assert two["hosts"] == expected, f"ranks are on {two}, expected {expected}"
assert two["shared"] == half, f"{two} ranks share memory, expected {half}"
worst = max(abs(a / b - 1) for a, b in zip(two["energies"], one["energies"], strict=True))
assert worst < 1e-10, f"energies differ by {worst}: {one}, {two}"
print(f"{worst:.0e}")' "$work/one" "$work/two" "${hosts[@]}"
}

good=0 runs=0
for ranks in 2 4; do
  one_host "$ranks" >"$work/one"
  for ((i = 0; i < times; i++)); do
    runs=$((runs + 1))
    start=$SECONDS
    if two_hosts "$ranks" >"$work/two" 2>"$work/log" && difference=$(compare 2>>"$work/log"); then
      good=$((good + 1))
      printf '%d ranks on 2 hosts: %3d s, energies differ from those on one host by %s\n' \
        "$ranks" $((SECONDS - start)) "$difference"
    else
      echo "$ranks ranks on 2 hosts: failed" >&2
      tail -n 20 "$work/two" "$work/log" >&2
    fi
  done
done
bytes=$(ip netns exec "${hosts[0]}" cat /sys/class/net/eth0/statistics/tx_bytes)
echo "hosts-test: $good of $runs jobs good; $((bytes / 1000000)) MB went from one host to the other"
[ $good = $runs ]
