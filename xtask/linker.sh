#!/bin/sh
# Links by the C compiler, which is installed first where a machine has none: without it cargo cannot build xtask, and
# so not what installs the rest.
set -eu
packages="gcc libc6-dev"
if ! command -v cc >/dev/null; then
    if [ "$(id -u)" != 0 ]; then
        echo "there is no C compiler; install it by:" >&2
        echo "  sudo apt-get install --yes --no-install-recommends $packages" >&2
        exit 1
    fi
    # Cargo links several programs at once, and one installation serves them all.
    exec 9<"$0"
    flock 9
    if ! command -v cc >/dev/null; then
        export DEBIAN_FRONTEND=noninteractive
        # What succeeds says nothing: the compiler would print it as warnings.
        log=$( (apt-get update && apt-get install --yes --no-install-recommends $packages) 2>&1) || {
            echo "$log" >&2
            exit 1
        }
    fi
    exec 9<&-
fi
exec cc "$@"
