#!/bin/sh
# Make all weights that ship with srcli again: a bank of Real-ESRGAN x4plus's pictures, then the models `tiny` (base, pixel adapter
# in eight parts, semantic adapter in two) and `light` (base, pixel adapter, semantic adapter in two parts). Needs the extras `realesrgan`
# and `features`.
#
#     scripts/make_builtin.sh PHOTOS OUT [MODEL ...]
#     scripts/make_builtin.sh ../shared/photos/train ~/runs/builtin light
#
# PHOTOS  a folder of sharp photos: `../shared/photos/train`. Never share-alike photos, never those that figures are measured on.
# OUT     gets photos/, select/ and bank/, and a folder for each model. Steps that are done are not done again; an adapter that was
#         interrupted goes on.
# MODEL   tiny, light, or both if none is named.
#
# Cost as measured in 2026-11, two cores of an AMD EPYC with avx512_bf16 where nothing else is said: bank 20 min. `light`: base 34,
# pixel adapter 17, semantic adapter 15 and 17. `tiny`: base 27, pixel adapter 65; its second part 80 on one core (AMD EPYC with AVX2
# alone, float32), its third 72 on two of those; on two cores of an Intel Xeon with AMX its fourth part 64, its fifth 57, its sixth
# 42, its seventh 48, its eighth 86; semantic adapter 60 and 19. At most 3 GB of memory. The `tiny` that ships had its first six parts
# before the base had a tail, which here learns from the first part on, and its pixel adapter saw the photos of select/, too.
# STEPS=2 in the environment cuts every part to so many steps and the bank to as many crops: to see that all of it runs.
#
# The results go into srcli/builtin of this checkout. Commit them only after `scripts/measure_tiny.py`, `scripts/measure_grid.py` and
# a look at pictures; the sums that the last lines print belong into models.toml.
set -eu

usage() { sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; }
case ${1-} in -h | --help) usage && exit ;; esac
[ $# -ge 2 ] || { usage >&2 && exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
photos=$(cd "$1" && pwd)
mkdir -p "$2"
out=$(cd "$2" && pwd)
shift 2
models=${*:-tiny light}
for model in $models; do
    case $model in tiny | light) ;; *) usage >&2 && exit 2 ;; esac
done
export PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}"
python=${PYTHON:-python3}
builtin=$here/../srcli/builtin

# without the four samples of this repository, and without sixteen, by the hash of their names, on which the dials are chosen
mkdir -p "$out/photos" "$out/select"
find "$photos" -type f -o -type l | grep -v -E '(kitten-on-lawn|roman-colosseum|dragonfly-on-lavender|oakland-zoo-otters)\.' |
    while IFS= read -r photo; do printf '%s %s\n' "$(basename "$photo" | tr -d '\n' | sha256sum | cut -c1-64)" "$photo"; done |
    sort | cut -c66- >"$out/photos.txt"
head -n 16 "$out/photos.txt" | while IFS= read -r photo; do ln -sf "$photo" "$out/select/"; done
tail -n +17 "$out/photos.txt" | while IFS= read -r photo; do ln -sf "$photo" "$out/photos/"; done

[ -d "$out/bank/lq" ] || "$python" "$here/make_crops.py" "$out/photos" "$out/bank" --count "${STEPS:-492}" --mild 0.7
"$python" -m srcli upscale "$out/bank/lq" -o "$out/bank/teacher" --model realesrgan-x4plus --format png
bank="$out/bank/teacher,lq=$out/bank/lq"

# NAME STAGE [OPTION ...]: train an adapter of $model by the recipe MODEL-NAME, on the photos
adapter() {
    name=$1 stage=$2
    shift 2
    [ -f "$out/$model/$name/$stage/adapter_model.safetensors" ] ||
        "$python" -m srcli "train-$stage" --model "$model" "$@" --data "$out/photos" --val none -o "$out/$model/$name" \
            --recipe "$here/builtin/$model-$name.toml" --resume ${STEPS:+--steps "$STEPS"}
}

make_tiny() {
    base=$out/tiny/base
    [ -f "$base/model_index.json" ] ||
        "$python" "$here/pretrain_tiny.py" "$out/photos" -o "$base" --recipe "$here/builtin/tiny.toml" ${STEPS:+--steps "$STEPS"}
    cp -R "$base/." "$builtin/tiny"
    adapter pixel pixel --licence Apache-2.0
    before=pixel
    for part in structure cameras fidelity wider finish tail balance; do
        adapter $part pixel --licence Apache-2.0 --start-from "$out/tiny/$before"
        before=$part
    done
    set -- --licence BSD-3-Clause --pixel "$out/tiny/balance" --data "$bank"
    adapter semantic semantic "$@"
    adapter detail semantic "$@" --start-from "$out/tiny/semantic"
    "$python" "$here/ship_adapters.py" "$out/tiny/balance" "$out/tiny/detail" "$builtin/tiny"
}

make_light() {
    network=$out/light/network.safetensors
    mkdir -p "$out/light" "$builtin/light"
    [ -f "$network" ] ||
        "$python" "$here/pretrain_light.py" "$bank" -o "$network" --recipe "$here/builtin/light.toml" ${STEPS:+--steps "$STEPS"}
    printf '[models.light]\nfamily = "network"\nnative_scale = 4\nbase = { file = "network.safetensors" }\n' >"$out/light/models.toml"
    set -- --models-file "$out/light/models.toml" --licence BSD-3-Clause
    adapter pixel pixel "$@"
    "$python" "$here/undo_adapter.py" "$out/light/pixel" -o "$out/light/start"
    set -- "$@" --pixel "$out/light/pixel" --data "$bank"
    adapter semantic semantic "$@" --start-from "$out/light/start"
    adapter finish semantic "$@" --start-from "$out/light/semantic"
    cp "$network" "$builtin/light"
    sha256sum "$builtin/light/network.safetensors"
    "$python" "$here/ship_adapters.py" "$out/light/pixel" "$out/light/finish" "$builtin/light"
}

for model in $models; do
    "make_$model"
done
