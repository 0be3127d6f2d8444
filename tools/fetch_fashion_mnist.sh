#!/bin/sh
# Puts Debian's dataset-fashion-mnist package under $1/fashion-mnist, without root and without installing it.
# Where it is installed already, or there is no apt, nothing is done: megu then looks elsewhere and says where.
set -eu
target="$1/fashion-mnist"
installed=/usr/share/datasets/fashion-mnist
if [ -d "$installed" ] || [ -d "$target" ]; then exit 0; fi
if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
    echo "no apt here: Fashion-MNIST will come from the Hugging Face hub, or give data.path=FOLDER"
    exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
if ! apt-get download -qq dataset-fashion-mnist 2>/dev/null; then
    # The package lists may be empty on a fresh machine; only root may refresh them.
    if [ "$(id -u)" = 0 ]; then apt-get update -qq; fi
    apt-get download -qq dataset-fashion-mnist || {
        echo "apt could not download dataset-fashion-mnist: megu will ask the Hugging Face hub, or give data.path=FOLDER"
        exit 0
    }
fi
dpkg-deb -x dataset-fashion-mnist_*.deb "$work/unpacked"
mkdir -p "$1"
mv "$work/unpacked$installed" "$target.part"
mv "$target.part" "$target"
