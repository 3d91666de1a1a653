#!/bin/sh
# Download the benchmark's dependencies beside torch and transformers, as wheels for Python 3.12 on
# Linux x86-64:
#   benchmarks/gpu/wheels.sh .whl
set -eu
folder=${1:?usage: wheels.sh FOLDER}
constraints=$(dirname "$0")/../../constraints.txt
platforms=
for glibc in 2_31 2_28 2_27 2_17; do platforms="$platforms --platform manylinux_${glibc}_x86_64"; done
for year in 2014 1; do platforms="$platforms --platform manylinux${year}_x86_64"; done
mkdir -p "$folder"
for name in pydantic pydantic_core annotated-types typing-inspection typing_extensions llguidance simplejpeg; do
    requirement=$(grep -i "^$name==" "$constraints")
    # shellcheck disable=SC2086  # $platforms holds several options
    python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
        $platforms -d "$folder" "$requirement"
done
du -sh "$folder"
