#!/bin/sh
# Builds the image of a bot's container and loads it into a container engine, without any registry:
# busybox and skep-bot, whose first process fetches the bot from the server. docs/hosts.md
# usage: build.sh SKEP_BOT [NAME]    DOCKER_HOST names the engine; BUSYBOX another static busybox.
set -eu
bot=$1 name=${2:-skep-bot:latest}
busybox=${BUSYBOX:-$(command -v busybox)}
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"
cd "$root"
mkdir -p bin sbin usr/bin usr/sbin etc/ssl/certs lib proc sys dev run var root b
mkdir -m 1777 tmp var/tmp
install -m 755 "$busybox" bin/busybox
for applet in $(bin/busybox --list); do
	# A bot's reboot request must end the container; what else could touch the host has no business here.
	case $applet in busybox | reboot | poweroff | halt | init | shutdown | mount | umount | su | login | passwd) continue ;; esac
	ln -s busybox "bin/$applet"
done
install -m 755 "$OLDPWD/$bot" usr/bin/skep-bot 2>/dev/null || install -m 755 "$bot" usr/bin/skep-bot
cat >sbin/shutdown <<'END'
#!/bin/sh
exec kill -USR1 1
END
chmod 755 sbin/shutdown
ln -s shutdown sbin/reboot
cat >etc/passwd <<'END'
root:x:0:0:root:/root:/bin/sh
bot:x:1000:1000:bot:/b:/bin/sh
nobody:x:65534:65534:nobody:/:/bin/false
END
cat >etc/group <<'END'
root:x:0:
bot:x:1000:
nogroup:x:65534:
END
# The same bytes give the same image: names in order, one date, one owner.
tar --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -cf - . |
	docker import \
		--change 'ENTRYPOINT ["/usr/bin/skep-bot","container"]' \
		--change 'ENV PATH=/bin:/sbin:/usr/bin:/usr/sbin' \
		--change 'LABEL dev.skep.drain=SIGTERM' \
		- "$name"
