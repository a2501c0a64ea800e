//! Cables and switches, and what goes wrong with them.

use std::fmt::Write;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::host::{Host, feed};
use crate::namespace::Namespace;

/// A switch: a bridge in namespaces of its own.
pub struct Switch {
    namespace: Arc<Namespace>,
    ports: AtomicUsize,
}

impl Switch {
    pub(crate) fn new(name: &str) -> Self {
        let namespace = Arc::new(Namespace::new(name));
        // A bridge that looks into multicast floods it only after a querier spoke, and there is none.
        ip(&namespace, "link add bridge type bridge forward_delay 0 mcast_snooping 0\nlink set bridge up\n");
        Self { namespace, ports: AtomicUsize::new(0) }
    }
}

/// A cable between a host and a switch.
pub struct Link {
    host: Arc<Namespace>,
    interface: String,
    switch: Arc<Namespace>,
    port: String,
}

impl Link {
    pub(crate) fn new(host: &Host, switch: &Switch, addresses: &[&str]) -> Self {
        let number = switch.ports.fetch_add(1, Ordering::Relaxed);
        let (interface, port) = (host.next_link(), format!("port{number}"));
        let mut configure = format!("link set {interface} up\n");
        for address in addresses {
            writeln!(configure, "address add {address} dev {interface}").expect("a string takes all");
        }
        let attach = format!("link set {port} master bridge up\n");
        Self::join(host, interface, Arc::clone(&switch.namespace), port, &attach, &configure)
    }

    /// Plugs a cable into two hosts, and carries out a batch of `ip` at either end: `attach` at the far one, which is
    /// called `port` there, then `configure` at the host.
    pub(crate) fn plug(
        host: &Host,
        interface: String,
        far: &Host,
        port: String,
        attach: &str,
        configure: &str,
    ) -> Self {
        Self::join(host, interface, far.shared_namespace(), port, attach, configure)
    }

    fn join(
        host: &Host,
        interface: String,
        far: Arc<Namespace>,
        port: String,
        attach: &str,
        configure: &str,
    ) -> Self {
        let link = Self { host: host.shared_namespace(), interface, switch: far, port };
        let (interface, port, thread) = (&link.interface, &link.port, link.host.thread_id());
        link.far(&format!("link add {port} type veth peer name {interface} netns {thread}\n{attach}"));
        ip(&link.host, configure);
        link
    }

    /// Carries out a batch of `ip` at the far end.
    pub(crate) fn far(&self, batch: &str) {
        ip(&self.switch, batch);
    }

    /// Returns the name of the far end.
    pub(crate) fn port(&self) -> &str {
        &self.port
    }

    /// Returns the name of the host's end.
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// Pulls the cable out of the switch: the host loses its carrier.
    pub fn cut(&self) {
        ip(&self.switch, &format!("link set {} down\n", self.port));
    }

    /// Plugs the cable in again.
    pub fn restore(&self) {
        ip(&self.switch, &format!("link set {} up\n", self.port));
    }

    /// Impairs both directions as netem's words say: `loss 30%`, `delay 20ms 5ms`. The last call counts.
    pub fn impair(&self, netem: &str) {
        self.impair_sending(netem);
        discipline(&self.switch, &self.port, netem);
    }

    /// Impairs only what the host sends.
    pub fn impair_sending(&self, netem: &str) {
        discipline(&self.host, &self.interface, netem);
    }

    /// Has the far end carry packets of so many bytes at most, of which the host's end knows nothing: what is longer is lost
    /// on its way there, and taken apart by the far end's router on its way back, unless it must not be (RFC 791).
    pub fn narrow(&self, mtu: u32) {
        ip(&self.switch, &format!("link set {} mtu {mtu}\n", self.port));
    }

    /// Ends what [`Self::impair`] began.
    pub fn repair(&self) {
        self.impair("delay 0ms");
    }
}

fn ip(namespace: &Namespace, batch: &str) {
    let mut command = Command::new("ip");
    command.args(["-batch", "-"]);
    feed(namespace, command, batch);
}

fn discipline(namespace: &Namespace, interface: &str, netem: &str) {
    let mut command = Command::new("tc");
    command.args(["-batch", "-"]);
    feed(namespace, command, &format!("qdisc replace dev {interface} root netem {netem}\n"));
}
