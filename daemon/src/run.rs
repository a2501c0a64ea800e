//! The task that drives everything.

use wgmesh_core::secret::MeshSecret;

use crate::api;
use crate::config::File;

/// A daemon that could not start, or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The local socket cannot be served.
    #[error(transparent)]
    Api(#[from] api::Error),
}

/// Runs one mesh until a signal ends it.
///
/// # Errors
/// If it cannot start.
pub async fn run(config: File, _secret: MeshSecret) -> Result<(), Error> {
    let lock = api::Lock::take(&config.socket_path())?;
    let server = api::Server::bind(config.socket_path(), lock)?;
    let (mesh, _questions) = tokio::sync::mpsc::channel(1);
    server.serve(mesh).await;
    Ok(())
}
