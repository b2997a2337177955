#!/bin/bash
# Completes the image's files in a folder that already has the server and the runtime's libraries. Adds the shared libraries
# that those load, certificates for `ghostserve pull` and traces over https, a user, package metadata for vulnerability
# scanners, and licences.
set -euo pipefail
image=$1

# All shared libraries, wherever this architecture has them. The runtime's own libraries are already in the image.
mapfile -t loaded < <(
    find "$image/usr/bin" "$image/usr/lib/ghostserve" -type f \( -perm -u+x -o -name '*.so*' \) -print0 |
        LD_LIBRARY_PATH="$image/usr/lib/ghostserve" xargs -0 ldd 2>/dev/null |
        sed -nE 's/^\t(.* => )?(\/[^ ]+) \(0x.*$/\2/p' | grep -v "^$image" | sort -u
)
if [ "${#loaded[@]}" -eq 0 ]; then
    echo "no libraries found: is $image complete?" >&2
    exit 1
fi
for library in "${loaded[@]}"; do
    install -D "$(realpath "$library")" "$image$library"
done

# Certificates, users, name resolution: files that programs expect on every system.
install -d "$image/etc/ssl/certs"
# From the package, because the build machine may have its own certificates mounted over the bundle.
(cd /usr/share/ca-certificates && sed '/^[!#]/d; /^$/d' /etc/ca-certificates.conf | xargs cat) \
    >"$image/etc/ssl/certs/ca-certificates.crt"
echo 'ghostserve:x:65532:65532:GhostServe:/nonexistent:/sbin/nologin' >"$image/etc/passwd"
echo 'ghostserve:x:65532:' >"$image/etc/group"
echo 'hosts: files dns' >"$image/etc/nsswitch.conf"
install -d -m 1777 "$image/tmp"

# For each Debian package in the image: the dpkg entry, from which scanners read its version, and its licence.
owner() { dpkg --search "$1" 2>/dev/null || dpkg --search "/usr$1" 2>/dev/null || dpkg --search "${1#/usr}"; }
{
    echo ca-certificates
    for library in "${loaded[@]}"; do
        owner "$(realpath "$library")" | cut -d : -f 1
    done
} | sort -u | while read -r package; do
    install -d "$image/var/lib/dpkg/status.d"
    dpkg --status "$package" >"$image/var/lib/dpkg/status.d/$package"
    copyright=/usr/share/doc/$package/copyright
    # Slim images omit documentation but keep copyright files.
    [ ! -e "$copyright" ] || install -D -m 644 "$(realpath "$copyright")" "$image$copyright"
done
