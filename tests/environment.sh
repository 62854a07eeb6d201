# Sourced by tests/*_env/make.sh, which make environments of their own: how one begins and how it fails.

# begin NAME FOLDER RECIPE FREE_MB: ends the script where FOLDER is ready from this RECIPE, else empties it.
begin() {
  name=$1 folder=$2 recipe="$3 $(cksum <"${BASH_SOURCE[0]}")"
  if [[ -f $folder/ready && $(<"$folder/ready") == "$recipe" ]]; then exit 0; fi
  [[ -f $folder/pyvenv.cfg || -z $(ls -A "$folder" 2>/dev/null) ]] || { echo "no $name environment: $folder is something else" >&2; exit 1; }
  rm -rf "$folder"
  mkdir -p "$folder" || fail "$folder cannot be made"
  local free_mb
  free_mb=$(df --output=avail -m "$folder" | tail -n 1)
  ((free_mb > $4)) || fail "$free_mb MB are free, $4 are needed while it is made"
}

# fail REASON: leaves nothing behind.
fail() {
  rm -rf "$folder"
  echo "no $name environment: $1" >&2
  exit 1
}

# finish: says that the folder is ready.
finish() { echo "$recipe" >"$folder/ready"; }
