#!/bin/sh
# Make all weights of the built-in model `tiny` again: base, pixel adapter, semantic adapter.
#
#     scripts/make_builtin.sh PHOTOS OUT
#
# PHOTOS  a folder of sharp photos: `../shared/photos/train` without those left out below. Never share-alike photos, never those
#         that figures are measured on.
# OUT     gets base/, pixel/ and semantic/. Steps that are done are not done again; an adapter that was interrupted goes on.
#
# Cost, measured on one core of a CPU with AMX (bf16), 2026-11, beside a process that prepares the crops: base 0.65 s a step (25 min),
# pixel adapter 0.55 s a step (45 min), of processor time; about 2 GB of memory. The semantic adapter was not measured yet.
#
# Each result replaces its predecessor in srcli/builtin/tiny of this checkout (the adapters are trained for `--model tiny`, and say
# so in their metadata). Commit it only after `scripts/measure_tiny.py`, `scripts/measure_grid.py` and a look at pictures; the sums
# that the last lines print belong into models.toml.
#
# The weights that ship were made before this script, by `scripts/pretrain_tiny.py` of commit 72d1c55 on plain patches of pixels. What this
# script makes was tried for 1,429 + 2,100 steps only, and was not better yet (val: +0.37 dB over bicubic, those +0.70 dB).
set -eu

if [ $# -ne 2 ]; then
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
here=$(cd "$(dirname "$0")" && pwd)
photos=$(cd "$1" && pwd)
mkdir -p "$2"
out=$(cd "$2" && pwd)
export PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}"
python=${PYTHON:-python3}
# large tensors go back to glibc's own heap, not to the system: fresh pages cost up to half of a step
export MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=536870912

list=$out/photos.txt
find "$photos" -type f -o -type l | grep -v -E '(kitten-on-lawn|roman-colosseum|dragonfly-on-lavender|oakland-zoo-otters)\.' |
    LC_ALL=C sort > "$list.part"
mkdir -p "$out/photos"
while IFS= read -r photo; do
    ln -sf "$photo" "$out/photos/"
done < "$list.part"
mv "$list.part" "$list"

tiny=$here/../srcli/builtin/tiny
if [ ! -f "$out/base/model_index.json" ]; then
    "$python" "$here/pretrain_tiny.py" "$out/photos" -o "$out/base" --recipe "$here/builtin/base.toml"
fi
cp -R "$out/base/." "$tiny"
chmod -R u=rwX,go=rX "$tiny"
if [ ! -f "$out/pixel/pixel/adapter_model.safetensors" ]; then
    "$python" -m srcli train-pixel --data "$out/photos" -o "$out/pixel" --recipe "$here/builtin/pixel.toml" \
        --licence Apache-2.0 --resume
fi
mkdir -p "$tiny/pixel" "$tiny/semantic"
cp "$out/pixel/pixel/"* "$tiny/pixel"
if [ ! -f "$out/semantic/semantic/adapter_model.safetensors" ]; then
    "$python" -m srcli train-semantic --data "$out/photos" -o "$out/semantic" --pixel "$out/pixel" \
        --recipe "$here/builtin/semantic.toml" --licence Apache-2.0 --resume
fi
cp "$out/semantic/semantic/"* "$tiny/semantic"
sha256sum "$tiny"/*/adapter_model.safetensors
