#!/bin/bash
# A SLURM of one node in a folder of its own, for as long as a command runs:  tests/slurm/cluster.sh COMMAND...
# It changes nothing else in the system, but installs Debian's packages where they are missing; only that needs root.
set -euo pipefail

PATH="$PATH:/usr/sbin"
missing=()
for program in slurmctld slurmd sbatch munged; do
    command -v "$program" >/dev/null || missing+=("$program")
done
if [ "${#missing[@]}" -gt 0 ]; then
    echo "cluster.sh: ${missing[*]} not installed; installing Debian's slurmctld, slurmd, slurm-client, munge" >&2
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "cluster.sh: that needs root and apt-get; install these four packages yourself" >&2
        exit 2
    fi
    if ! { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends \
        --yes slurmctld slurmd slurm-client munge >/dev/null; }; then
        echo "cluster.sh: apt-get could not install them (see above); is there a network or a mirror?" >&2
        exit 2
    fi
fi

here="$(cd "$(dirname "$0")" && pwd)"
folder="$(mktemp -d -t r1track-slurm.XXXXXX)"
chmod 711 "$folder" # munge wants its socket to be within everybody's reach
mkdir "$folder"/{state,spool,cards,bin}
for card in 0 1; do # SLURM gives out devices alone: in the place of a card's, any other one
    ln -s /dev/null "$folder/cards/nvidia$card"
done
read -r ctld_port slurmd_port < <(python3 - <<'PORTS'
import socket
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(each.getsockname()[1] for each in sockets))
PORTS
)
for file in slurm.conf gres.conf; do
    sed -e "s|FOLDER|$folder|; s|HOST|$(hostname -s)|g; s|USER|$(id -un)|" \
        -e "s|CTLD_PORT|$ctld_port|; s|SLURMD_PORT|$slurmd_port|" "$here/$file" >"$folder/$file"
done
export SLURM_CONF="$folder/slurm.conf"
# Snakemake's plugin takes SLURM_CONF from the steps of its jobs, because it is named SLURM_...; this gives it back.
printf '#!/bin/sh\nSLURM_CONF=%s exec %s "$@"\n' "$SLURM_CONF" "$(command -v srun)" >"$folder/bin/srun"
chmod +x "$folder/bin/srun"
PATH="$folder/bin:$PATH"

daemons=()
stop() {
    scancel --quiet --full --signal=KILL --user="$(id -un)" || true # what runs,
    scancel --quiet --user="$(id -un)" || true                      # and what waits
    for _ in $(seq 30); do
        [ -n "$(squeue --noheader 2>/dev/null)" ] || break
        sleep 1
    done
    for pid in "${daemons[@]}"; do
        kill "$pid" 2>/dev/null && wait "$pid" || true
    done
    rm -rf "$folder"
}
trap stop EXIT
(umask 077 && head -c 128 /dev/urandom >"$folder/munge.key")
# In sessions of their own, so that Ctrl-C does not end them before `stop` has cancelled the jobs.
setsid munged --foreground --socket "$folder/munge.socket" --key-file "$folder/munge.key" --pid-file "$folder/munged.pid" \
    --log-file "$folder/munged.log" --seed-file "$folder/munge.seed" 2>"$folder/munged.out" &
daemons=($!)
setsid slurmctld -D -i 2>"$folder/slurmctld.out" &
daemons=($! "${daemons[@]}")
setsid slurmd -D 2>"$folder/slurmd.out" &
daemons=($! "${daemons[@]}")
for _ in $(seq 60); do
    state="$(sinfo --noheader --partition gpu --format '%T %G' 2>&1 || true)"
    [ "$state" = "idle gpu:2" ] && break
    sleep 1
done
if [ "$state" != "idle gpu:2" ]; then
    echo "cluster.sh: SLURM did not start: $state" >&2
    tail -n 20 "$folder"/*.{log,out} >&2
    exit 1
fi
echo "$(sbatch --version), one node, two emulated cards"
export SLURM_OF_TESTS=1
"$@"
