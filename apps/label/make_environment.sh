#!/usr/bin/env bash
# Make the environment of the MONAI Label app, apps/label/.venv or the folder named first, from requirements.txt.
# Run it again after a stop, or after a change of requirements.txt. Ends with 3 where packages cannot be installed.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
venv="${1:-$here/.venv}"
stamp="$venv/.installed"

if [ -f "$stamp" ] && cmp -s "$stamp" "$here/requirements.txt"; then
    exit 0
fi
"${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || {
    echo "the pinned packages need Python 3.11: PYTHON=python3.11 $0" >&2
    exit 3
}
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
echo "Installing into $venv (3.4 GB), some minutes ..."
rm -f "$stamp"
install=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check)
# torch with what its build needs: CUDA's packages where pip's index offers that build
"${install[@]}" "$(grep '^torch==' "$here/requirements.txt")" || exit 3
# --no-deps: MONAI Label asks for sam2 and torchvision, which this app does not use and which bring gigabytes more
"${install[@]}" --no-deps -r "$here/requirements.txt" || exit 3
echo "$here/../.." > "$("$venv/bin/python" -c 'import site; print(site.getsitepackages()[0])')/monai_anon.pth"
cp "$here/requirements.txt" "$stamp"
