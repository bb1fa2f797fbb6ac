#!/usr/bin/env bash
# Fetch Chromium's headless shell as Debian packages, with the libraries that this machine lacks, and unpack them into
# .cache/chromium, whose script `run` starts it. Needs apt-get and dpkg, but neither root nor an installation.
# What is there already is not fetched again.
set -euo pipefail
cd "$(dirname "$0")/.."
package=chromium-headless-shell
target=.cache/chromium
[[ -x $target/run ]] && { echo "chromium: $target/run is there"; exit 0; }
command -v apt-get >/dev/null && command -v dpkg >/dev/null || { echo "chromium: apt-get and dpkg are needed" >&2; exit 1; }
if ! apt-cache show $package >/dev/null 2>&1; then
  apt-get update || { echo "chromium: package lists are missing; run apt-get update as root once" >&2; exit 1; }
fi

# apt resolves what an installation would add, and downloads the same; letters in pages need one font at least.
lacking=$(apt-get install -s -qq --no-install-recommends $package fonts-dejavu-core | awk '$1 == "Inst" {print $2}')
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/deb" "$work/tree"
# -o: the sandbox user may not write to a private folder.
[[ -z $lacking ]] || (cd "$work/deb" && apt-get -o APT::Sandbox::User=root download -qq $lacking)
for file in "$work"/deb/*.deb; do
  [[ ! -e $file ]] || dpkg -x "$file" "$work/tree"
done

binary=usr/lib/chromium/chromium-headless-shell
[[ -e $work/tree/$binary || -e /$binary ]] || { echo "chromium: $package has no /$binary" >&2; exit 1; }
rm -rf "$target"
mkdir -p "$target"
mv "$work/tree" "$target/tree"
cat > "$target/fonts.conf" << FONTS
<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig>
  <dir>/usr/share/fonts</dir><dir prefix="relative">tree/usr/share/fonts</dir>
  <cachedir prefix="xdg">fonts</cachedir>
</fontconfig>
FONTS
cat > "$target/run.new" << RUN
#!/bin/sh
# Written by scripts/chromium.sh.
here=\$(cd "\$(dirname "\$0")" && pwd)
libraries=\$(find "\$here/tree" -name '*.so*' -printf '%h\n' | sort -u | grep -v /chromium\$ | tr '\n' ':')
export LD_LIBRARY_PATH="\$libraries\$LD_LIBRARY_PATH" FONTCONFIG_FILE="\$here/fonts.conf" XDG_CACHE_HOME="\$here"
[ -x "\$here/tree/$binary" ] && exec "\$here/tree/$binary" "\$@"
exec /$binary "\$@"
RUN
chmod +x "$target/run.new"
mv "$target/run.new" "$target/run"
echo "chromium: fetched $(wc -w <<< "$lacking") packages into $target"
