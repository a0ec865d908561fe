#!/bin/sh
# A provider for boards that stand on a shelf, as a plug-in program: docs/wire/provider-exec.md.
# To create a machine is to give it a free board, to delete it is to put the board back.
#
# usage: boards.sh DIR VERB     the question's parts are in the environment, SKEP_NAME and so on, but for secrets: the whole
# question is on standard input, which DIR/start inherits
#
# DIR/boards lists the boards, one to a line. DIR/start, DIR/stop and DIR/alive, where they exist, are run with board,
# name and, to start, server: they make the board a bot of that name ("ssh $1 systemctl start …"), switch it off, and say
# by their exit code whether it runs. Those in local/ are for boards that are directories of this host: copy it, and name
# the copy as DIR. A machine is a file DIR/names/NAME with request id, labels and time; the board that it has is a second
# link to it, DIR/busy/BOARD. Both come into being at once or not at all, so that this program may be killed at any point
# and asked again.
set -eu
dir=$1
names=$dir/names busy=$dir/busy
mkdir -p "$names" "$busy"

refuse() { # class, reason, text
	printf '{"error":{"class":"%s","reason":"%s","text":"%s"}}\n' "$1" "$2" "$3"
	exit 0
}

board_of() { # name
	for b in "$busy"/*; do
		if [ "$b" -ef "$names/$1" ]; then
			echo "${b##*/}"
			return
		fi
	done
}

show() { # name
	{
		read -r request
		read -r labels
		read -r created
	} <"$names/$1"
	board=$(board_of "$1")
	ended=false
	[ ! -x "$dir/alive" ] || "$dir/alive" "$board" "$1" >&2 || ended=true
	printf '{"name":"%s","url":"board:%s/%s","created":"%s","labels":%s,"networks":[{"internal":"%s"}],"ended":%s}' \
		"$1" "$board" "$request" "$created" "$labels" "$board" "$ended"
}

name=$SKEP_NAME
case $name in *[!a-z0-9-]*) refuse invalid name "names of machines have a-z, 0-9 and dashes" ;; esac

case $2 in
create)
	if [ ! -e "$names/$name" ]; then
		new=$names/.new-$name
		printf '%s\n%s\n%s\n' "$SKEP_REQUEST_ID" "$SKEP_LABELS" "$(date -u +%Y-%m-%dT%H:%M:%SZ)" >"$new"
		mv "$new" "$names/$name"
	fi
	read -r request <"$names/$name"
	[ "$request" = "$SKEP_REQUEST_ID" ] || refuse conflict taken "$name exists already"
	board=$(board_of "$name")
	if [ -z "$board" ]; then
		while read -r b; do
			if ln "$names/$name" "$busy/$b" 2>/dev/null; then
				board=$b
				break
			fi
		done <"$dir/boards"
	fi
	if [ -z "$board" ]; then
		rm "$names/$name"
		refuse exhausted no_board "every board is in use"
	fi
	[ ! -x "$dir/start" ] || "$dir/start" "$board" "$name" "$SKEP_SERVER" >&2
	echo '{"done":true}'
	;;
get)
	[ -e "$names/$name" ] && [ -n "$(board_of "$name")" ] || refuse not_found unknown "there is no $name"
	printf '{"instance":%s}\n' "$(show "$name")"
	;;
delete)
	if [ -e "$names/$name" ]; then
		board=$(board_of "$name")
		if [ -n "$board" ]; then
			[ ! -x "$dir/stop" ] || "$dir/stop" "$board" "$name" >&2
			rm -f "$busy/$board"
		fi
		rm -f "$names/$name"
	fi
	echo '{"done":true}'
	;;
list)
	printf '{"instances":['
	comma=
	for f in "$names"/*; do
		[ -e "$f" ] && [ -n "$(board_of "${f##*/}")" ] || continue
		printf '%s%s' "$comma" "$(show "${f##*/}")"
		comma=,
	done
	printf ']}\n'
	;;
*)
	echo "unknown verb $2" >&2
	exit 2
	;;
esac
