# What the stages share. Variables come from build.sh.

# extract DIRECTORY PACKAGE...: unpack packages into a tree whose /bin, /lib and so on are links to those of /usr
extract() {
  local into=$1 package name; shift
  mkdir -p "$into"/usr/{bin,sbin,lib,lib64}
  for name in bin sbin lib lib64; do ln -sfn "usr/$name" "$into/$name"; done
  for package; do dpkg-deb --fsys-tarfile "$package" | tar -x --keep-directory-symlink -C "$into"; done
}

# libraries FILE...: the shared libraries in $root that the files need, those that these need, and so on, as paths below $root
libraries() {
  local queue=("$@") file name
  local -A seen=()
  while ((${#queue[@]})); do
    file=${queue[0]}
    queue=("${queue[@]:1}")
    for name in $(readelf --dynamic --wide "$file" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p'); do
      [[ ${seen[$name]-} ]] && continue
      seen[$name]=1
      if [[ ! -e $root/usr/lib/$multiarch/$name ]]; then
        echo "$file needs $name, which no package of packages.list holds" >&2
        return 1
      fi
      queue+=("$root/usr/lib/$multiarch/$name")
      echo "usr/lib/$multiarch/$name"
    done
  done
}

# copy TO PATH...: files of $root to the same paths below TO, links as files
copy() {
  local to=$1 path; shift
  for path; do
    mkdir -p "$to/$(dirname "$path")"
    cp --dereference --preserve=mode "$root/$path" "$to/$path"
  done
}

# with_libraries TO PATH...: the same, with all their libraries and the program that loads them: a tree that is enough to run them
with_libraries() {
  local to=$1 needed loader; shift
  copy "$to" "$@"
  needed=$(libraries "${@/#/$root/}")
  # shellcheck disable=SC2086  # paths without spaces
  copy "$to" $needed
  loader=$(readelf --program-headers --wide "$root/$1" | sed -n 's/.*interpreter: \/\(.*\)\]/\1/p')
  if [[ $loader ]]; then copy "$to" "usr/$loader"; fi
}

# xtables_names DIRECTORY: the names under which iptables' program goes
xtables_names() {
  local name
  for name in {ip,ip6}tables{,-save,-restore} {ip,ip6}tables-nft{,-save,-restore} ebtables; do
    ln -s xtables-nft-multi "$1/$name"
  done
}
