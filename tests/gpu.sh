#!/usr/bin/env bash
# Everything that a GPU must show, in one command of at most nine minutes on one H100.
#
#     bash tests/gpu.sh FOLDER                  writes FOLDER/summary.txt and seven more files
#     bash tests/gpu.sh FOLDER --device cpu     the same parts at toy size, as CI rehearses them
#
# Where NANOGPT names a folder with nanoGPT's model.py, that model is timed beside ours.
set -uo pipefail  # and not -e: when a part fails, the next ones still run
mkdir -p "${1:?usage: bash tests/gpu.sh FOLDER [--device cpu]}" || exit 2
device=${3:-cuda}
root=$(cd "$(dirname "$0")/.." && pwd)
out=$(cd "$1" && pwd)
work=$(mktemp -d)  # train.py writes runs/ and data.py writes data/ where they are started
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 2
rm -f "$out"/{summary,tests,preset,study,speed,cpt}.txt "$out"/study.{png,md}  # of an earlier run
failed=0 results="" deadline=520  # seconds for all parts, which leaves some for a part that is slow to end

part() {  # part TITLE SECONDS FILE COMMAND...: runs it for so many seconds at most, adds its output to FILE
    local title=$1 limit=$2 file=$out/$3 start=$SECONDS verdict=PASS
    shift 3
    if [ $((deadline - SECONDS)) -lt "$limit" ]; then
        limit=$((deadline - SECONDS))
    fi
    echo "$title: ${file##*/}"
    echo "\$ ${*//$root\//}" >> "$file"
    # at the limit train.py gets ten seconds to write its checkpoints
    if [ "$limit" -le 0 ] || ! timeout --kill-after=10 "$limit" "$@" >> "$file" 2>&1 < /dev/null; then
        verdict=FAIL failed=1
    fi
    results+=$(printf '%s %4d s  %s' $verdict $((SECONDS - start)) "$title")$'\n'
}

if [ "$device" = cuda ]; then
    preset=(--gate 0 --base_steps 200 --steps 100 --documents 4000)  # so short a base learns nothing
    study=(--preset laptop --seeds 5)
    speed=(--big --compile default)
    cpt=(--block_size 1024 --n_layer 12 --n_head 12 --n_embd 768 --batch_size 16 --base_batch_size 16
         --lr 3e-4 --base_lr 3e-4 --steps 200 --dtype bfloat16 --compile default)
    text=(--steps 40)
else
    export OMP_NUM_THREADS=1  # at this size a second thread takes longer to start than it saves
    tiny=(--n_layer 1 --n_head 2 --n_embd 32 --batch_size 8 --base_batch_size 8 --base_steps 4 --steps 4
          --copain_items 2 --label_items 3 --validation_blocks 8)
    preset=(--gate 0 "${tiny[@]}" --documents 300 --only target)
    study=(--preset smoke "${tiny[@]}" --documents 300 --only target,ema --seeds 2)
    speed=()
    cpt=("${tiny[@]}" --block_size 256)
    text=("${tiny[@]}")
fi

part "the tests that need a GPU" 170 tests.txt \
    python -m pytest -q -rfE --durations=5 "$root/tests/test_cuda.py"
part "the gpu preset, shortened" 120 preset.txt \
    python "$root/train.py" --preset gpu --name preset --device $device "${preset[@]}"

nvidia-smi --query-gpu=utilization.gpu,memory.used --format=csv,noheader,nounits -l 1 > use.csv 2> /dev/null &
part "the main study, ${study[-1]} runs" 200 study.txt \
    python "$root/train.py" --name study --device $device "${study[@]}"
kill $! 2> /dev/null
cp runs/study/main/figure.png "$out/study.png"
cp runs/study/main/report.md "$out/study.md"

part "the speed of a step" 180 speed.txt \
    python "$root/tests/speed.py" "${speed[@]}" ${NANOGPT:+--nanogpt "$NANOGPT"}

# Any text will do, and the repository's own is always there.
part "text to tokens" 60 cpt.txt \
    python "$root/data.py" prepare --name text --tokenizer bpe --val 0.1 "$root"/*.{md,py} "$root"/tests/*.py
part "CPT of GPT-2's smallest shape on this text" 120 cpt.txt \
    python "$root/train.py" --preset laptop --name cpt --only target --device $device \
    --source text=data/text --base_curriculum target=rest --base_steps 5 "${cpt[@]}"
part "the files of a GPT-2, of the base of this CPT" 30 cpt.txt \
    python "$root/model.py" runs/cpt/seed3000/base.pt --export gpt2
part "the text preset on these files" 120 cpt.txt \
    python "$root/train.py" --name text --only target,ema --device $device \
    --source text=data/text --init gpt2 "${text[@]}"

{
    nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2> /dev/null || echo "no GPU"
    python -c "import torch; print('torch', torch.__version__, 'CUDA', torch.version.cuda)"
    echo "commit $(git -C "$root" describe --always --dirty 2> /dev/null || echo unknown); $SECONDS s in all"
    printf '\n%s\n' "$results"
    awk -F', ' '{ use += $1; if ($2 > most) most = $2 }
        END { if (NR) printf "the study used the GPU %.0f%%, %d MiB at most\n", use / NR, most }' use.csv
    grep tokens/s "$out/speed.txt"
} > "$out/summary.txt"
cat "$out/summary.txt"
exit $failed
