#!/bin/sh
# Turns the root folder $1 of a fresh Debian into the lab's disk, kernel and initramfs in the folder $LAB_IMAGE.
set -eu
root=$1
units=$root/etc/systemd/system

# Nothing runs by itself: the tests start what they need, and a boot has nothing to wait for.
for unit in avahi-daemon.service avahi-daemon.socket coturn.service dnsmasq.service miniupnpd.service \
    nftables.service getty@tty1.service serial-getty@ttyS0.service ldconfig.service \
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service \
    fstrim.timer man-db.timer modprobe@drm.service modprobe@efi_pstore.service modprobe@fuse.service \
    sys-fs-fuse-connections.mount sys-kernel-debug.mount dev-hugepages.mount systemd-timesyncd.service; do
    ln -sf /dev/null "$units/$unit"
done
# Whatever reloads systemd runs its generators, which takes an emulated processor seconds, and nothing needs what they make.
rm -f "$root"/usr/lib/systemd/system-generators/* "$root"/lib/systemd/system-generators/*
# A machine id and the marks of a finished update keep systemd from taking every boot for the first.
cat /proc/sys/kernel/random/uuid | tr -d - >"$root/etc/machine-id"
touch "$root/etc/.updated" "$root/var/.updated"
mkdir -p "$root/lab"
# What systemd-udevd would load for the emulated board takes ten seconds of emulated processor, and nobody uses it.
for module in aesni_intel ata_generic ata_piix ccp ghash_clmulni_intel kvm_amd kvm_intel polyval_clmulni \
    powernow_k8 psmouse; do
    echo "blacklist $module" >>"$root/etc/modprobe.d/lab.conf"
done

cat >"$root/usr/local/sbin/lab-init" <<'END'
#!/bin/sh
mount -o ro /dev/vdb /lab
exec /lab/guest.sh
END
chmod 755 "$root/usr/local/sbin/lab-init"
cat >"$units/lab.service" <<'END'
[Unit]
Description=The lab's command
After=multi-user.target dbus.service
[Service]
Type=exec
ExecStart=/usr/local/sbin/lab-init
Delegate=yes
[Install]
WantedBy=multi-user.target
END
mkdir -p "$units/multi-user.target.wants"
ln -sf ../lab.service "$units/multi-user.target.wants/lab.service"

cp "$root"/boot/vmlinuz-* "$LAB_IMAGE/kernel"
cp "$root"/boot/initrd.img-* "$LAB_IMAGE/initramfs"
rm -rf "$root"/boot/* "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/*
# A bind mount shows the folder itself, without what is mounted on its /proc, /sys and /dev.
mkdir -p "$LAB_IMAGE/root"
mount --bind "$root" "$LAB_IMAGE/root"
trap 'umount "$LAB_IMAGE/root"; rmdir "$LAB_IMAGE/root"' EXIT
mke2fs -q -F -t ext4 -O ^has_journal -d "$LAB_IMAGE/root" "$LAB_IMAGE/disk" 1500M
