#!/bin/sh
# What tests/test_page.py needs: Chromium (Debian's) and the rules of axe-core (from npm, MPL-2.0).
# Fetches what is missing and says what it could not; never fails, since those tests are skipped.
set -u
cd "$(dirname "$0")/.."

axe=axe-core-4.14.1
sum=29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c
into=build/axe

if ! command -v chromium >/dev/null 2>&1 && ! command -v chromium-browser >/dev/null 2>&1; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        { apt-get update -q && apt-get install -qy --no-install-recommends chromium; } >&2 ||
            echo "browser.sh: apt-get could not install chromium" >&2
    else
        echo "browser.sh: no chromium; as root: apt-get install chromium" >&2
    fi
fi

if [ ! -f $into/axe.min.js ]; then
    if command -v npm >/dev/null 2>&1 && mkdir -p $into &&
        npm pack --silent --pack-destination $into axe-core@${axe##*-} >/dev/null 2>&1; then
        tar xzf $into/$axe.tgz -C $into --strip-components=1 \
            package/axe.min.js package/LICENSE
        rm -f $into/$axe.tgz
        if [ "$(sha256sum $into/axe.min.js | cut -c1-64)" != $sum ]; then
            echo "browser.sh: axe.min.js is not the expected file; removed" >&2
            rm -f $into/axe.min.js
        fi
    else
        echo "browser.sh: axe-core could not be fetched with npm" >&2
    fi
fi
exit 0
