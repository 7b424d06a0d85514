#!/usr/bin/env bash
# Build the image and try what docker/README.md promises of it:
#
#   docker/image-test.sh [options of the build, such as --no-cache]
#
# With docker where an engine answers. Elsewhere, as root on Debian, with buildah and podman, which
# are installed if need be, and on a base made by debootstrap if it cannot be pulled. The images
# stay, so that the next build is quick; everything else is removed. Exits with 1 if a check failed.
# shellcheck disable=SC2016,SC2086,SC2317  # scripts for other shells; plain words; called by name
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
base=docker.io/library/debian:trixie-slim
image=fem_mf:test
container=fem-mf-test-$$
seconds=${LIMIT:-900} # that a container may take
largest=2200          # MB that the image may have
user=12345            # nobody's
# Three steps on a coarse mesh: the least that writes every kind of result.
coarse=(mpirun -n 2 python demos/two_layer_network.py
  --h 1.2 --dt 0.1 --t-end 0.3 --tolerance 0 --samples 2)
work=$(mktemp -d)
rows=()
failed=0

say() { printf 'image-test: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

# ---- the engine

# A base as docker's own: Debian's smallest system without its documentation.
make_base() {
  local root=$work/base mirror
  say "$base cannot be pulled; making one"
  # The mirror that this machine uses; apt fills it in.
  mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | head -n 1)
  debootstrap --variant=minbase trixie "$root" "$mirror" >"$work/log" 2>&1 ||
    fail "debootstrap: $(tail -n 3 "$work/log")"
  rm -rf "$root"/var/cache/apt/*.bin "$root"/var/cache/apt/archives/*.deb \
    "$root"/var/lib/apt/lists/* "$root"/usr/share/{doc,man,locale,info}/*
  printf 'path-exclude /usr/share/%s/*\n' doc man locale info >"$root"/etc/dpkg/dpkg.cfg.d/slim
  # Certificates that this machine trusts beyond the usual ones: its network may need them.
  if compgen -G '/usr/local/share/ca-certificates/*.crt' >/dev/null; then
    mkdir -p "$root"/usr/local/share/ca-certificates "$root"/etc/ssl/certs
    cp /usr/local/share/ca-certificates/*.crt "$root"/usr/local/share/ca-certificates/
    cp /etc/ssl/certs/ca-certificates.crt "$root"/etc/ssl/certs/
  fi
  tar --exclude='./dev/*' -C "$root" -cf "$work/rootfs.tar" .
  printf 'FROM scratch\nADD rootfs.tar /\nCMD ["bash"]\n' >"$work/Dockerfile"
  buildah bud --quiet --isolation chroot -t "$base" "$work" >/dev/null
}

if docker info >/dev/null 2>&1; then
  engine=(docker)
  options=()
  network=bridge
  build=(docker build)
else
  [ "$(id -u)" = 0 ] || fail "there is no docker engine, and without one this needs root"
  for tool in buildah podman crun conmon debootstrap; do
    command -v $tool >/dev/null && continue
    say "installing what builds and runs images"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
      buildah podman crun conmon debootstrap >/dev/null
    break
  done
  # Not every machine lets a container have its own control groups, limits and network; none of them
  # matters here.
  engine=(unshare --mount sh -c 'mount --make-rprivate / && umount -R /sys/fs/cgroup &&
    mount -t cgroup2 none /sys/fs/cgroup && exec podman "$@"' podman)
  options=(--pull=never --cgroups=disabled --ulimit nofile=20000:20000 --ulimit nproc=1000:1000)
  network=none
  build=(buildah bud --isolation chroot --pull-never --layers)
  buildah inspect --type image "$base" >/dev/null 2>&1 ||
    timeout 120 buildah pull --quiet "$base" >/dev/null 2>&1 || make_base
fi

clean() {
  "${engine[@]}" rm -f "$container" >/dev/null 2>&1 || true
  rm -rf "$work"
}
trap clean EXIT
trap 'exit 130' INT TERM HUP

# run OPTION... -- COMMAND...: in a new container; without a command the image's own.
run() {
  local -a more=()
  while [ "$1" != -- ]; do more+=("$1"); shift; done
  shift
  timeout -k 30 "$seconds" "${engine[@]}" run --rm --name "$container" \
    --network $network "${options[@]}" "${more[@]}" $image "$@" </dev/null
}

# ---- the checks: functions that print what they measured, if anything, on descriptor 3

build_image() { "${build[@]}" "$@" -f docker/Dockerfile -t $image .; }

# folder: a new one for results, in $results, that belongs to $user.
folder() {
  results=$(mktemp -d "$work/results-XXXX")
  chown $user:$user "$results"
}

# complete: the demo wrote all it should to $results, and all of it belongs to $user.
complete() {
  local name strangers
  for name in series.xdmf series.bin history.csv run.json history.png fit.png neurons.png; do
    [ -s "$results/two_layer_network/$name" ] || fail "there is no $name"
  done
  strangers=$(find "$results" ! -user $user)
  [ -z "$strangers" ] || fail "not of user $user: $strangers"
}

dockerfile_lint() { hadolint docker/Dockerfile; }

size() {
  local bytes
  bytes=$("${engine[@]}" image inspect --format '{{.Size}}' $image)
  echo "$((bytes / 1000000)) MB" >&3
  [ $((bytes / 1000000)) -le $largest ]
}

packages() {
  run -- python -c 'from importlib.metadata import distributions as all
print(*(f"{d.name}=={d.version}" for d in all() if d.name != "fem_mf"), sep="\n")' >"$work/packages"
  echo "$(wc -l <"$work/packages") packages" >&3
  diff <(sort -f docker/constraints.txt) <(sort -f "$work/packages")
}

not_root() {
  [ "$(run -- id -u)" = 1000 ]
  [ "$("${engine[@]}" image inspect --format '{{.Config.User}}' $image)" = 1000 ]
}

doctor() { run -- python -m fem_mf doctor; }

default_command() {
  folder
  run --user $user:$user -v "$results:/fem_mf/results" --
  complete
}

coarse_demo() {
  run --user $user:$user -v "$results:/fem_mf/results" "$@" -- "${coarse[@]}"
  complete
}

no_network() { local network=none; folder; coarse_demo; }

read_only() { folder; coarse_demo --read-only --tmpfs /tmp:exec; }

# Results are not overwritten unasked.
existing_results() {
  folder
  coarse_demo
  if run --user $user:$user -v "$results:/fem_mf/results" -- "${coarse[@]}"; then
    fail "the results were overwritten"
  fi
  coarse=("${coarse[@]}" --overwrite)
  coarse_demo
}

nothing_mounted() { run --user $user:$user -- "${coarse[@]}"; }

four_ranks() { run -- mpirun -n 4 python demos/two_layer_network.py "${coarse[@]:5}"; }

own_script() {
  folder
  cat >"$results/own.py" <<'END'
import gmsh
import imageio.v3 as imageio
import numpy as np
import pyvista

import fem_mf as mf

gmsh.initialize()
sphere = pyvista.Sphere(theta_resolution=60, phi_resolution=60)
sphere["height"] = sphere.points[:, 2]
plotter = pyvista.Plotter(window_size=(320, 240))
plotter.add_mesh(sphere, scalars="height")
plotter.open_movie("film.mp4", framerate=10)
for _ in range(10):
    plotter.camera.Azimuth(5)
    plotter.write_frame()
plotter.screenshot("picture.png")
plotter.close()
picture, film = imageio.imread("picture.png"), imageio.imread("film.mp4")
assert picture.shape == (240, 320, 3) and len(np.unique(picture)) > 50, picture.shape
assert film.shape == (10, 240, 320, 3) and film.std() > 5, film.shape
END
  run --user $user:$user -v "$results:/data" -w /data -- python own.py
  [ -s "$results/picture.png" ] && [ -s "$results/film.mp4" ]
}

# `docker stop` sends SIGTERM to the launcher: it has to reach every rank, which may then end by itself.
stop() {
  folder
  run --user $user:$user -v "$results:/data" -w /data -- mpirun -n 2 sh -c '
    trap "echo told >told-$PMI_RANK; exit 0" TERM
    touch ready-$PMI_RANK
    while :; do sleep 0.2; done' &
  wait_until test -e "$results/ready-0" -a -e "$results/ready-1"
  "${engine[@]}" stop --time 60 "$container"
  wait $!
  [ -s "$results/told-0" ] && [ -s "$results/told-1" ]
}

# A run that is stopped so goes on in a new container.
restart() {
  local t history
  folder
  history=$results/two_layer_network/history.csv
  run --user $user:$user -v "$results:/fem_mf/results" -- "${coarse[@]}" --t-end 1000 &
  wait_until grep -q '^0.2' "$history"
  "${engine[@]}" stop --time 120 "$container"
  wait $!
  t=$(tail -n 1 "$history" | cut -d , -f 1)
  run --user $user:$user -v "$results:/fem_mf/results" -- \
    "${coarse[@]}" --restart --t-end "$(awk "BEGIN { print $t + 0.3 }")"
  complete
  # A line for the names, one for the start, and one for each step of 0.1.
  [ "$(grep -vc '^#' "$history")" = "$(awk "BEGIN { print int(($t + 0.3) / 0.1 + 2.5) }")" ]
  echo "stopped at t = $t" >&3
}

wait_until() {
  local i
  for ((i = 0; i < seconds; i++)); do
    "$@" 2>/dev/null && return
    sleep 1
  done
  return 1
}

# check NAME FUNCTION...: run it, and add a row to the table.
check() {
  local name=$1 start=$SECONDS result=ok
  shift
  # Not as a condition: there, a failure inside the function would go unnoticed.
  set +e
  (set -e; "$@") >"$work/log" 2>&1 3>"$work/measured"
  # shellcheck disable=SC2181
  if [ $? != 0 ]; then
    result=FAILED
    failed=1
    say "$name failed:"
    tail -n 20 "$work/log" >&2
  fi
  set -e
  rows+=("$(printf '%-44s %-6s %4d s  %s' "$name" $result $((SECONDS - start)) "$(cat "$work/measured")")")
  say "${rows[-1]}"
}

if command -v hadolint >/dev/null; then
  check "hadolint" dockerfile_lint
else
  say "hadolint is not installed: not run"
fi
check "build" build_image "$@"
[ $failed = 0 ] || fail "nothing to try without an image"
check "size, at most $largest MB" size
check "packages are those of constraints.txt" packages
check "user is not root" not_root
check "doctor" doctor
check "own command, uid $user, results mounted" default_command
check "without network" no_network
check "read-only, /tmp in memory" read_only
check "again on existing results" existing_results
check "nothing mounted" nothing_mounted
check "4 ranks" four_ranks
check "own script: gmsh, picture and film" own_script
check "stop reaches every rank" stop
check "stopped run goes on in a new container" restart

echo
printf '%s\n' "${rows[@]}"
exit $failed
