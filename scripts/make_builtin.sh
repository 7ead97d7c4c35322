#!/bin/sh
# Make all weights of the built-in model `tiny` again: base, pixel adapter in eight parts, semantic adapter.
#
#     scripts/make_builtin.sh PHOTOS OUT
#     scripts/make_builtin.sh ../shared/photos/train ~/runs/tiny
#
# PHOTOS  a folder of sharp photos: `../shared/photos/train`. Never share-alike photos, never those that figures are measured on.
# OUT     gets base/, pixel/, structure/, cameras/, fidelity/, wider/, finish/, tail/, semantic/ and balance/. Steps that are
#         done are not done again; an adapter that was interrupted goes on.
#
# Cost as measured in 2026-11: base 27 min and first part of the pixel adapter 65 min on two cores (AMD EPYC with avx512_bf16); its
# second part 80 min on one core (AMD EPYC with AVX2 alone, float32), its third part 72 min on two of those; on two cores of an
# Intel Xeon with AMX its fourth part 64 min, its fifth 57, its sixth 42, its seventh 48, its eighth 86, and the semantic adapter
# 3. At most 3 GB of memory. The weights that ship had their first six parts before the base had a tail, which here learns from the
# first part on. STEPS=2 in the environment cuts every part to so many steps: to see that all of it runs.
#
# Each result replaces its predecessor in srcli/builtin/tiny of this checkout (the adapters are trained for `--model tiny`, and say
# so in their metadata). Commit it only after `scripts/measure_tiny.py`, `scripts/measure_grid.py` and a look at pictures; the sums
# that the last lines print belong into models.toml.
set -eu

usage() { sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; }
case ${1-} in -h | --help) usage && exit ;; esac
[ $# -eq 2 ] || { usage >&2 && exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
photos=$(cd "$1" && pwd)
mkdir -p "$2"
out=$(cd "$2" && pwd)
export PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}"
python=${PYTHON:-python3}
tiny=$here/../srcli/builtin/tiny

# without the four samples of this repository (the base that ships has seen them, its adapters have not)
mkdir -p "$out/photos"
find "$photos" -type f -o -type l | grep -v -E '(kitten-on-lawn|roman-colosseum|dragonfly-on-lavender|oakland-zoo-otters)\.' |
    while IFS= read -r photo; do ln -sf "$photo" "$out/photos/"; done

if [ ! -f "$out/base/model_index.json" ]; then
    "$python" "$here/pretrain_tiny.py" "$out/photos" -o "$out/base" --recipe "$here/builtin/base.toml" ${STEPS:+--steps "$STEPS"}
fi
cp -R "$out/base/." "$tiny"

# NAME STAGE [OPTION ...]: train an adapter by the recipe of that name, and put it into the model
adapter() {
    name=$1 stage=$2
    shift 2
    if [ ! -f "$out/$name/$stage/adapter_model.safetensors" ]; then
        "$python" -m srcli "train-$stage" --data "$out/photos" --val none -o "$out/$name" --recipe "$here/builtin/$name.toml" \
            --licence Apache-2.0 --resume ${STEPS:+--steps "$STEPS"} "$@"
    fi
    mkdir -p "$tiny/$stage"
    cp "$out/$name/$stage/"* "$tiny/$stage"
}

adapter pixel pixel
adapter structure pixel --start-from "$out/pixel"
adapter cameras pixel --start-from "$out/structure"
adapter fidelity pixel --start-from "$out/cameras"
adapter wider pixel --start-from "$out/fidelity"
adapter finish pixel --start-from "$out/wider"
adapter tail pixel --start-from "$out/finish"
adapter semantic semantic --pixel "$out/tail"
adapter balance pixel --start-from "$out/tail" # the semantic adapter suits this one too: docs/tiny.md has the figures
chmod -R u=rwX,go=rX "$tiny"
sha256sum "$tiny"/*/adapter_model.safetensors
