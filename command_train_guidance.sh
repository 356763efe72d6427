#!/usr/bin/env bash
# CHAMP guidance training, from a bare clone (Python 3.11 or newer is all it needs):
#
#   bash command_train_guidance.sh demo           make the demo data, train the embedded tiny model on it, then a
#                                                 generator of dances, and make a video of an image and a song
#   bash command_train_guidance.sh demo [flags]   the demo's first training alone, with flags of your own
#   bash command_train_guidance.sh [flags]        train on ./data from Stable Diffusion 1.5
#
# Flags go to train_guidance.py and beat the configuration file (configs/demo.yaml, configs/train_guidance.yaml).
# Relative paths are relative to this folder. From the environment:
#   NUM_PROCESSES=4              processes on this machine, one for each GPU
#   ACCELERATE_CONFIG=FILE.yaml  an accelerate configuration (configs/accelerate/: several GPUs, several machines)
#   CUDA_VISIBLE_DEVICES=0,1     the GPUs to use
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")" >/dev/null
. scripts/environment.sh

if [ "${1:-}" = "-h" ] || [ "${1:-}" = "--help" ]; then
    sed -n '2,/^set /s/^# \{0,1\}//p' command_train_guidance.sh
    exit 0
fi

# What to train: the demo, or the documented training.
config=configs/train_guidance.yaml
if [ "${1:-}" = "demo" ]; then
    config=configs/demo.yaml
    shift
fi

# Environment: .venv, or the one that is active.
python="$(prepare_environment requirements.txt)"

# Demo data; what exists already is kept.
if [ "$config" = "configs/demo.yaml" ]; then
    "$python" -m datasets.demo_data --output_dir demo_data
fi

# Train. torch's launcher runs several processes on GPUs and on the CPU alike (accelerate's starts one on a CPU).
launcher=("$python")
# After SIGTERM the launchers kill in 30 seconds, too few to finish a step and save.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}"
if [ -n "${ACCELERATE_CONFIG:-}" ]; then
    launcher=("$python" scripts/launch.py --config_file "$ACCELERATE_CONFIG")
    if [ -n "${NUM_PROCESSES:-}" ]; then
        launcher+=(--num_processes "$NUM_PROCESSES")
    fi
elif [ "${NUM_PROCESSES:-1}" != "1" ]; then
    launcher=("$python" scripts/launch.py --standalone --nproc_per_node "$NUM_PROCESSES")
fi
# exec, or run where more follows: signals (Ctrl-C, SIGTERM) reach the training, and its exit code is this command's.
start=exec
if [ "$config" = "configs/demo.yaml" ] && [ $# -eq 0 ]; then
    start=run
fi
"$start" "${launcher[@]}" train_guidance.py --config "$config" "$@"

# The demo goes on: the generator of dances, then a dancer and another's song that neither model has seen.
run "${launcher[@]}" train_music_to_pose.py --config configs/demo_music_to_pose.yaml
pose=demo_output/samples/standing_pose.json
run "$python" -m demo.standing_pose --sample validation_00000 --output "$pose"
run "$python" sample_guidance.py --model_path demo_output/final --music_to_pose_path demo_output/music_to_pose/final \
    --reference_image demo_data/validation/reference_images/validation_00000.png --reference_pose "$pose" \
    --music demo_data/validation/music_features/validation_00001.npy \
    --audio demo_data/validation/videos/validation_00001.mp4 \
    --output demo_output/samples/from_an_image_and_a_song.mp4 --panel --overwrite \
    --guidance_scale 2.0 --num_inference_steps 12
