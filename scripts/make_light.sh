#!/bin/sh
# Make all weights of the built-in model `light` again: a bank of Real-ESRGAN x4plus's pictures, base, pixel adapter, semantic
# adapter in two parts. Needs the extras `realesrgan` and `features`.
#
#     scripts/make_light.sh PHOTOS OUT
#     scripts/make_light.sh ../shared/photos/train ~/runs/light
#
# PHOTOS  a folder of sharp photos: `../shared/photos/train`. Never share-alike photos, never those that figures are measured on.
# OUT     gets photos/, bank/, network.safetensors, pixel/, start/, semantic/ and finish/. Steps that are done are not done again.
#
# Cost as measured in 2026-11 on two busy cores of an AMD EPYC with avx512_bf16: bank 20 min, base 34, pixel adapter 17, semantic
# adapter 15 and 17. STEPS=2 in the environment cuts every part to so many steps and the bank to as many crops: to see that all of
# it runs. Sixteen of the photos, by the hash of their names, are left out: the setting of the dials was chosen on them.
# The results go into srcli/builtin/light; the sums that the last lines print belong into models.toml.
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

# without the four samples of this repository, and without the selection
mkdir -p "$out/photos" "$out/select"
find "$photos" -type f -o -type l | grep -v -E '(kitten-on-lawn|roman-colosseum|dragonfly-on-lavender|oakland-zoo-otters)\.' |
    while IFS= read -r photo; do printf '%s %s\n' "$(basename "$photo" | tr -d '\n' | sha256sum | cut -c1-64)" "$photo"; done |
    sort | cut -c66- >"$out/photos.txt"
head -n 16 "$out/photos.txt" | while IFS= read -r photo; do ln -sf "$photo" "$out/select/"; done
tail -n +17 "$out/photos.txt" | while IFS= read -r photo; do ln -sf "$photo" "$out/photos/"; done

[ -d "$out/bank/lq" ] || "$python" "$here/make_crops.py" "$out/photos" "$out/bank" --count "${STEPS:-492}" --mild 0.7
"$python" -m srcli upscale "$out/bank/lq" -o "$out/bank/teacher" --model realesrgan-x4plus --format png
bank="$out/bank/teacher,lq=$out/bank/lq"
[ -f "$out/network.safetensors" ] ||
    "$python" "$here/pretrain_light.py" "$bank" -o "$out/network.safetensors" --recipe "$here/builtin/light.toml" ${STEPS:+--steps "$STEPS"}
cat >"$out/models.toml" <<ROW
[models.light]
family = "network"
native_scale = 4
base = { file = "network.safetensors" }
ROW

# NAME STAGE [OPTION ...]: train an adapter by the recipe light-NAME
adapter() {
    name=$1 stage=$2
    shift 2
    [ -f "$out/$name/$stage/adapter_model.safetensors" ] ||
        "$python" -m srcli "train-$stage" --model light --models-file "$out/models.toml" --val none -o "$out/$name" \
            --recipe "$here/builtin/light-$name.toml" --licence BSD-3-Clause --resume ${STEPS:+--steps "$STEPS"} "$@"
}

adapter pixel pixel --data "$out/photos"
"$python" "$here/undo_adapter.py" "$out/pixel" -o "$out/start"
adapter semantic semantic --pixel "$out/pixel" --start-from "$out/start" --data "$bank" --data "$out/photos"
adapter finish semantic --pixel "$out/pixel" --start-from "$out/semantic" --data "$bank" --data "$out/photos"

model=$here/../srcli/builtin/light
mkdir -p "$model"
cp "$out/network.safetensors" "$model"
sha256sum "$model/network.safetensors"
"$python" "$here/ship_adapters.py" "$out/pixel" "$out/finish" "$model"
