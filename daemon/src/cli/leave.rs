//! `wgmesh leave`: out of the mesh, and what would bring the node back.

use super::Error;
use crate::api::{Leaving, client};
use crate::config::File;

/// Has the daemon of this configuration leave. Returns what to tell.
pub(super) fn leave(config: &File, forget: bool) -> Result<Vec<String>, Error> {
    client::leave(&config.socket_path(), Leaving { forget })?;
    let interface = &config.interface;
    let told = format!(
        "{interface} has left the mesh; its peers were told, and nothing of it is left in the kernel"
    );
    let kept = match forget {
        true => "the node's key and peers are forgotten".to_owned(),
        false => format!("`systemctl start wgmesh@{interface}` brings it back as it was"),
    };
    Ok(vec![told, kept, format!("a boot starts it anew unless you `systemctl disable wgmesh@{interface}`")])
}
