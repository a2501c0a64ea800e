#!/bin/sh
# Gives the person at the serial console a shell with job control.
export TERM=${TERM:-vt100} PS1='lab# '
cd /root
exec setsid --wait sh -c 'exec bash --norc -i </dev/ttyS0 >/dev/ttyS0 2>&1'
