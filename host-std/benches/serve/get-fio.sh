#!/bin/bash
# get-fio.sh DIR: fio with the engine libblkio, which is a vhost-user client, in DIR/bin/fio.
#
# Debian builds fio without that engine. This takes the source package of fio (3.41 or later: sid's) and the packages of
# libblkio (trixie's, and the C library it was built against) with apt-get into DIR, and builds fio there. Nothing is
# installed; the system's own lists of packages are not touched. Needs: apt-get, dpkg-deb, gcc, make, pkg-config.
set -euo pipefail
[ $# = 1 ] || { echo "usage: get-fio.sh DIR" >&2; exit 2; }
mkdir -p "$1"
dir=$(cd "$1" && pwd)
if [ -x "$dir/bin/fio" ]; then echo "$dir/bin/fio is there"; exit 0; fi
for tool in apt-get dpkg-deb gcc make pkg-config; do
    command -v $tool >/dev/null || { echo "get-fio.sh needs $tool" >&2; exit 1; }
done
mirror=${MIRROR:-$(sed -n 's/^URIs: *//p' /etc/apt/sources.list.d/*.sources 2>/dev/null | sed '/security/d' | sed -n 1p)}
[ -n "$mirror" ] || { echo "get-fio.sh: this system names no Debian mirror; set MIRROR to one" >&2; exit 1; }
keys=${KEYS:-/usr/share/keyrings/debian-archive-keyring.gpg}

# An apt of its own: no state is shared with the system's.
apt() {
    local suite=$1 state=$dir/apt-$1
    shift
    mkdir -p "$state"/{etc/apt.conf.d,etc/preferences.d,state/lists/partial,cache/archives/partial}
    touch "$state/status"
    printf 'deb [signed-by=%s] %s %s main\ndeb-src [signed-by=%s] %s %s main\n' \
        "$keys" "$mirror" "$suite" "$keys" "$mirror" "$suite" >"$state/etc/sources.list"
    # A mirror that lags behind has an expired sid; its signature is checked all the same.
    cat >"$state/apt.conf" <<X
Dir::Etc "$state/etc"; Dir::Etc::sourcelist "$state/etc/sources.list"; Dir::Etc::sourceparts "-";
Dir::Etc::preferencesparts "$state/etc/preferences.d"; Dir::Etc::parts "$state/etc/apt.conf.d";
Dir::State "$state/state"; Dir::State::status "$state/status"; Dir::Cache "$state/cache";
APT::Install-Recommends "0"; APT::Get::Assume-Yes "1"; APT::Sandbox::User "root"; APT::Architecture "$(dpkg --print-architecture)";
Acquire::Languages "none"; Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "0"; Acquire::Check-Valid-Until "false";
X
    APT_CONFIG=$state/apt.conf apt-get -q "$@"
}

echo "fetching libblkio (trixie) and fio's source (sid) from $mirror into $dir"
apt trixie update >/dev/null
apt trixie install --download-only libblkio-dev libblkio1 >/dev/null
mkdir -p "$dir/unpacked" "$dir/source" "$dir/bin"
for package in "$dir"/apt-trixie/cache/archives/*.deb; do dpkg-deb -x "$package" "$dir/unpacked"; done
apt sid update >/dev/null
(cd "$dir/source" && apt sid source --download-only --tar-only fio >/dev/null)
tar -xf "$dir"/source/fio_*.orig.tar.* -C "$dir/source" --strip-components=1

echo "building fio"
lib=$dir/unpacked/usr/lib/$(gcc -print-multiarch)
[ -e "$lib/libblkio.so" ] || { echo "get-fio.sh: no libblkio.so in $lib" >&2; exit 1; }
# Only libblkio comes from the packages: the headers of another C library must stay out.
mkdir -p "$dir/include" "$dir/pkgconfig"
cp "$dir"/unpacked/usr/include/blkio.h "$dir/include/"
printf 'Name: blkio\nDescription: libblkio\nVersion: %s\nCflags: -I%s\nLibs: -L%s -lblkio\n' \
    "$(sed -n 's/^Version: //p' "$lib/pkgconfig/blkio.pc")" "$dir/include" "$dir/link" >"$dir/pkgconfig/blkio.pc"
mkdir -p "$dir/link" && ln -sf "$lib"/libblkio.so* "$dir/link/"
(
    cd "$dir/source"
    export PKG_CONFIG_PATH=$dir/pkgconfig LDFLAGS=-Wl,--allow-shlib-undefined
    ./configure --disable-native --disable-numa --disable-rados --disable-rbd --disable-http --disable-gfapi >configure.log
    grep -q '^libblkio engine *yes' configure.log || { grep -i blkio configure.log >&2; exit 1; }
    make -j"$(nproc)" fio >make.log 2>&1 || { tail -20 make.log >&2; exit 1; }
)
# Runs with the C library that libblkio wants.
loader=$(find "$dir/unpacked" -name 'ld-linux*.so*' | head -1)
printf '#!/bin/sh\nexec %s --library-path %s %s "$@"\n' "$loader" "$lib" "$dir/source/fio" >"$dir/bin/fio"
chmod +x "$dir/bin/fio"
"$dir/bin/fio" --version
