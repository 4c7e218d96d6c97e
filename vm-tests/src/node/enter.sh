# Joins control groups, then becomes a command: enter.sh FOLDERS COMMAND...
# FOLDERS is one word, the folders of the groups divided by blanks.
set -eu
for folder in $1; do echo $$ > "$folder/cgroup.procs"; done
shift
exec "$@"
