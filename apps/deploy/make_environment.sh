#!/usr/bin/env bash
# Make the environment of the MONAI Deploy app, apps/deploy/.venv or the folder named first, from requirements.txt.
# Run it again after a stop, or after a change of requirements.txt. Ends with 3 where packages cannot be installed.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
venv="${1:-$here/.venv}"
stamp="$venv/.installed"

if [ -f "$stamp" ] && cmp -s "$stamp" "$here/requirements.txt"; then
    exit 0
fi
"${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11) or sys.version_info >= (3, 14))' || {
    echo "the pinned packages need Python 3.11 to 3.13: PYTHON=python3.11 $0" >&2
    exit 3
}
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
echo "Installing into $venv (1.7 GB), some minutes ..."
# --no-deps: what the SDK's own list asks for contradicts itself (tritonclient[all] wants numpy < 2, holoscan has 2.x);
# requirements.txt is complete without it.
"$venv/bin/python" -m pip install -qq --disable-pip-version-check --no-deps -r "$here/requirements.txt" || exit 3
cp "$here/requirements.txt" "$stamp"
