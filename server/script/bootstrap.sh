#!/bin/sh
# Turns this machine into a bot of {{.Server}}.
#
#   curl -fsS 'SERVER/bootstrap?tok=TOKEN' | sh                 run a bot here, in this shell
#   curl -fsS 'SERVER/bootstrap?tok=TOKEN' | sh -s -- --service install and start it as a systemd or launchd service
#
# Flags: --dir DIR    the bot's directory (default: this one if it is empty or a bot's, else ./skep-bot)
#        --id ID      the bot's id (default: the host's name)
#        --user USER  account of the service (default: the one that runs this script)
#        --service | --rc-local | --at-login   how to start it from now on; default: run it in the foreground
#        --print      only show what would be installed
set -eu
{ # read to its end before anything is done: a download may break off

server={{.Server}}
token={{.Token}}
ca={{.TLSCA}}
me=$(id -un 2>/dev/null) || me=$(id -u) # an account of a container may have no name
dir= id= how=run print= user=$me

die() { echo "bootstrap: $*" >&2; exit 1; }

while [ $# -gt 0 ]; do
	case $1 in
	--dir) dir=${2?--dir needs a directory}; shift ;;
	--id) id=${2?--id needs an id}; shift ;;
	--user) user=${2?--user needs an account}; shift ;;
	--service) how=service ;;
	--rc-local) how=rc-local ;;
	--at-login) how=at-login ;;
	--print) print=yes ;;
	*) die "unknown argument $1; see the head of this script" ;;
	esac
	shift
done
case $id in *[!A-Za-z0-9._-]*) die "--id may hold letters, digits, '.', '_' and '-'" ;; esac
case $user in *[!A-Za-z0-9._-]*) die "--user is not the name of an account" ;; esac

case $(uname -s) in
Linux) os=linux ;;
Darwin) os=darwin ;;
*) die "this script is for Linux and macOS; elsewhere use shell=ps1" ;;
esac
case $(uname -m) in
x86_64 | amd64) arch=amd64 ;;
aarch64 | arm64) arch=arm64 ;;
*) die "there is no bot for a $(uname -m)" ;;
esac
digest=
case $os/$arch in
{{- range .Code}}
{{.OS}}/{{.Arch}}) digest={{.Digest}} ;;
{{- end}}
esac
[ -n "$digest" ] || die "the server has no bot for $os/$arch"

if [ -z "$dir" ]; then
	dir=$(pwd)
	if [ "$dir" = "${HOME-}" ] || { [ ! -e "$dir/swarming.dir" ] && [ -n "$(ls -A "$dir")" ]; }; then
		dir=$dir/skep-bot
	fi
fi
case $dir in /*) ;; *) dir=$(pwd)/$dir ;; esac
case $dir in *[!A-Za-z0-9/._-]*) die "the directory $dir has characters that a service cannot start from; choose another with --dir" ;; esac

unit() {
	cat <<UNIT
{{.Unit}}UNIT
}

plist() {
	cat <<PLIST
<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0">
<dict>
	<key>Label</key><string>dev.skep.bot</string>
	<key>ProgramArguments</key><array><string>$dir/swarming_bot</string><string>start_slave</string></array>
	<key>WorkingDirectory</key><string>$dir</string>
${id:+	<key>EnvironmentVariables</key><dict><key>SWARMING_BOT_ID</key><string>$id</string></dict>
}	<key>RunAtLoad</key><true/>
	<key>KeepAlive</key><dict><key>SuccessfulExit</key><false/></dict>
	<key>ExitTimeOut</key><integer>86400</integer>
	<key>SessionCreate</key><true/>
	<key>StandardErrorPath</key><string>$dir/logs/launchd.log</string>
</dict>
</plist>
PLIST
}

loop() {
	cat <<LOOP
#!/bin/sh
# Runs the bot of $dir and starts it again when it fails.
cd $dir || exit 1
${id:+SWARMING_BOT_ID=$id
export SWARMING_BOT_ID
}pause=0 child=
trap 'quit=yes; [ -n "\$child" ] && kill -TERM "\$child"' TERM INT HUP
quit=
while [ -z "\$quit" ]; do
	began=\$(date +%s)
	./swarming_bot start_slave </dev/null &
	child=\$!
	while wait "\$child"; code=\$?; kill -0 "\$child" 2>/dev/null; do :; done
	child=
	[ "\$code" -eq 0 ] && exit 0
	[ \$((\$(date +%s) - began)) -ge 2 ] && pause=0
	[ "\$pause" -lt 10 ] && pause=\$((pause + 1))
	[ -n "\$quit" ] || sleep "\$pause"
done
LOOP
}

rc_line="su -s /bin/sh $user -c 'sh $dir/start_bot.sh' &"

desktop() {
	cat <<DESKTOP
[Desktop Entry]
Type=Application
Name=skep bot
Exec=sh $dir/start_bot.sh
DESKTOP
}

[ "$how/$os" != rc-local/darwin ] || die "macOS has no rc.local; use --service"
if [ -n "$print" ]; then
	case $how/$os in
	service/linux) unit ;;
	service/darwin | at-login/darwin) plist ;;
	rc-local/*) printf '# in /etc/rc.local, before its exit\n%s\n\n# %s/start_bot.sh\n' "$rc_line" "$dir" && loop ;;
	at-login/linux) printf '# ~/.config/autostart/skep-bot.desktop\n' && desktop && printf '\n# %s/start_bot.sh\n' "$dir" && loop ;;
	*) loop ;;
	esac
	exit 0
fi

umask 077
# What another account owns is not run, nor written to, as this one.
[ "$me" = "$user" ] || [ ! -e "$dir" ] || die "$dir is there already; run this as $user, or choose another --dir"
mkdir -p "$dir"
[ "$me" = "$user" ] || chown "$user" "$dir"
cd "$dir"
certs=
if [ -n "$ca" ]; then
	certs=$dir/server-cacert.pem
	printf '%s' "$ca" >"$certs"
fi
fetch() {
	if command -v curl >/dev/null; then
		curl -fsS --retry 5 --retry-connrefused ${certs:+--cacert "$certs"} -o "$2" "$1"
	elif command -v wget >/dev/null; then
		wget -q --tries=5 ${certs:+--ca-certificate="$certs"} -O "$2" "$1"
	else
		die "neither curl nor wget is here"
	fi
}
sum() {
	if command -v sha256sum >/dev/null; then sha256sum <"$1"; else shasum -a 256 <"$1"; fi | cut -d ' ' -f 1
}
if [ ! -x swarming_bot ] || ! ./swarming_bot version >/dev/null 2>&1; then
	mkdir -p tmp
	tmp=tmp/bootstrap.$$
	trap 'rm -f "$tmp"' EXIT
	tries=0
	until fetch "$server/swarming/api/v1/bot/bot_code/$digest" "$tmp" && [ "$(sum "$tmp")" = "$digest" ]; do
		tries=$((tries + 1))
		[ "$tries" -lt 5 ] || die "what $server sends is not the bot that it promised; nothing was started"
		sleep "$tries"
	done
	chmod 755 "$tmp"
	[ "$me" = "$user" ] || chown "$user" "$tmp"
	mv "$tmp" swarming_bot
	trap - EXIT
fi
if [ -n "$token" ]; then # a bot whose own credential is still good removes it unused
	mkdir -p tmp
	printf '%s\n' "$token" >tmp/bootstrap.tok
	[ "$me" = "$user" ] || chown "$user" tmp tmp/bootstrap.tok
	mv tmp/bootstrap.tok bootstrap.tok
fi
umask 022

case $how/$os in
service/linux)
	command -v systemctl >/dev/null || die "there is no systemd here; use --rc-local"
	unit >/etc/systemd/system/skep-bot.service
	systemctl daemon-reload
	systemctl enable skep-bot.service
	systemctl restart skep-bot.service
	echo "bootstrap: skep-bot.service runs in $dir"
	;;
service/darwin)
	plist >/Library/LaunchDaemons/dev.skep.bot.plist
	launchctl bootstrap system /Library/LaunchDaemons/dev.skep.bot.plist
	echo "bootstrap: dev.skep.bot runs in $dir"
	;;
at-login/darwin)
	mkdir -p "$HOME/Library/LaunchAgents"
	plist >"$HOME/Library/LaunchAgents/dev.skep.bot.plist"
	launchctl bootstrap "gui/$(id -u)" "$HOME/Library/LaunchAgents/dev.skep.bot.plist"
	echo "bootstrap: dev.skep.bot runs in $dir whenever $me logs in"
	;;
rc-local/*)
	loop >"$dir/start_bot.sh"
	grep -qF "$rc_line" /etc/rc.local 2>/dev/null || {
		[ -e /etc/rc.local ] || printf '#!/bin/sh\n' >/etc/rc.local
		# Before the last exit, which many end with: behind it nothing runs. Written in
		# place, as the file may be a link.
		new=$(awk -v line="$rc_line" '{ l[NR] = $0 } /^exit([ \t;]|$)/ { last = NR }
			END { for (i = 1; i <= NR; i++) { if (i == last) print line; print l[i] }; if (!last) print line }' /etc/rc.local)
		printf '%s\n' "$new" >/etc/rc.local
		chmod 755 /etc/rc.local
	}
	sh -c "$rc_line"
	echo "bootstrap: the bot in $dir runs now and starts with this machine"
	;;
at-login/linux)
	mkdir -p "$HOME/.config/autostart"
	loop >"$dir/start_bot.sh"
	desktop >"$HOME/.config/autostart/skep-bot.desktop"
	echo "bootstrap: the bot in $dir runs whenever $me logs in"
	;;
run/*)
	loop >start_bot.sh
	echo "bootstrap: the bot ${id:+$id }runs in $dir until Ctrl-C or skep terminate ends it; its logs are in $dir/logs"
	exec sh start_bot.sh
	;;
esac
}
