#!/usr/bin/env bash
# Fetch the fonts that texthawk2-nano is trained and tested on, as Debian packages, and unpack them into .cache/fonts.
# Needs apt-get and dpkg, but neither root nor an installation. What is there already is not fetched again.
#
#   scripts/fonts.sh [PACKAGE...]   these packages only: `make test` needs two of the Chinese ones, training all
set -euo pipefail
cd "$(dirname "$0")/.."
packages=(
  # Latin
  fonts-dejavu-core fonts-dejavu-extra fonts-liberation2 fonts-freefont-ttf fonts-roboto-unhinted fonts-roboto-slab
  fonts-lato fonts-open-sans fonts-crosextra-caladea fonts-linuxlibertine fonts-comfortaa fonts-hack fonts-inconsolata
  fonts-comic-neue fonts-cantarell fonts-ebgaramond fonts-jetbrains-mono fonts-yanone-kaffeesatz fonts-quicksand
  fonts-paratype fonts-courier-prime fonts-cabin fonts-go fonts-vollkorn fonts-sil-andika fonts-breip fonts-dosis
  fonts-oldstandard fonts-b612 fonts-oxygen fonts-play fonts-karla fonts-humor-sans
  fonts-adf-accanthis fonts-adf-gillius fonts-adf-ikarius fonts-adf-libris fonts-adf-tribun fonts-adf-universalis
  fonts-anonymous-pro fonts-arapey fonts-averia-sans-gwf fonts-averia-serif-gwf fonts-cardo fonts-century-catalogue
  fonts-clear-sans fonts-compagnon fonts-crosextra-carlito fonts-fantasque-sans fonts-fanwood
  fonts-firacode fonts-gfs-didot fonts-gfs-neohellenic fonts-goudybookletter fonts-hermit fonts-inter fonts-jura
  fonts-klee fonts-league-mono fonts-league-spartan fonts-lindenhill fonts-manrope fonts-monofur fonts-monoid
  fonts-mononoki fonts-nanum fonts-opendyslexic fonts-prociono fonts-quattrocento fonts-sil-charis fonts-sil-gentiumplus
  fonts-sora fonts-tlwg-garuda-ttf fonts-tlwg-kinnari-ttf fonts-tlwg-purisa-ttf fonts-tlwg-sawasdee-ttf
  fonts-tlwg-umpush-ttf fonts-tuffy fonts-urw-base35 fonts-yrsa-rasa
  # Chinese
  fonts-noto-cjk fonts-wqy-zenhei fonts-wqy-microhei fonts-arphic-uming fonts-arphic-ukai fonts-lxgw-wenkai
  fonts-smiley-sans fonts-babelstone-han
)
(($# == 0)) || packages=("$@")
target=.cache/fonts
mkdir -p "$target/packages"

missing=()
for package in "${packages[@]}"; do
  [[ -e "$target/packages/$package" ]] || missing+=("$package")
done
if ((${#missing[@]} == 0)); then
  echo "fonts: all ${#packages[@]} packages are in $target"
  exit 0
fi
command -v apt-get >/dev/null && command -v dpkg >/dev/null || { echo "fonts: apt-get and dpkg are needed" >&2; exit 1; }
if ! apt-cache show "${missing[@]}" >/dev/null 2>&1; then
  apt-get update || { echo "fonts: package lists are missing; run apt-get update as root once" >&2; exit 1; }
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for package in "${missing[@]}"; do
  # One at a time: what is done stays done when a later one fails. -o: the sandbox user may not write to a private folder.
  (cd "$work" && apt-get -o APT::Sandbox::User=root download -qq "$package")
  mkdir "$work/tree"
  dpkg -x "$work/${package}"_*.deb "$work/tree"
  mkdir "$work/fonts"
  find "$work/tree/usr/share/fonts" -type f \( -name '*.ttf' -o -name '*.otf' -o -name '*.ttc' \) -exec cp {} "$work/fonts/" \;
  cp "$work/tree/usr/share/doc/$package/copyright" "$work/fonts/copyright.txt"
  mv "$work/fonts" "$target/packages/$package"
  rm -rf "$work/tree" "$work"/*.deb
done
echo "fonts: fetched ${#missing[@]} packages into $target"
