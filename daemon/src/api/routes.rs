//! What may be asked, and how the mesh task is asked for it.

use std::net::SocketAddr;
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};
use wgmesh_core::key::PublicKey;
use wgmesh_core::stun::Report;

use super::{Answer, ApiRequest};
use crate::hops::Hops;
use crate::metrics;
use crate::pins::{Pin, Removal};

/// How long a caller waits for the mesh task, which answers within milliseconds unless something is wrong.
const PATIENCE: Duration = Duration::from_secs(5);

/// OpenMetrics 1.0, "Protocol Negotiation".
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// How long a check of the NAT may take: a round over the servers lasts at most 3 s, the hairpin test follows it.
/// It ends before [`PATIENCE`] does, so that what is known by then is told.
const NAT_PATIENCE: Duration = Duration::from_millis(4500);

/// How long a peer has to answer a ping: as long as the slowest path that is of any use.
const PING_PATIENCE: Duration = Duration::from_secs(2);

/// How often the mesh task is asked whether the network has answered. A round trip is measured where the packets
/// are, so this only delays the telling.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Whom to ping.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Target {
    /// The peer's key.
    pub(super) key: PublicKey,
}

/// How this node leaves the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaving {
    /// Whether its key and what it knows of others go too, so that it would come back as a stranger.
    pub forget: bool,
}

/// A ping that was answered, as it travels to the command line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pong {
    /// The address that answered.
    pub from: SocketAddr,
    /// What kind of address it is, by the names of `status`.
    pub kind: String,
    /// The round trip in microseconds.
    pub rtt_us: u64,
}

impl From<Answer> for Pong {
    fn from(answer: Answer) -> Self {
        Self {
            from: answer.last.from,
            kind: answer.kind.name().to_owned(),
            rtt_us: u64::try_from(answer.last.rtt.as_micros()).unwrap_or(u64::MAX),
        }
    }
}

type Mesh = mpsc::Sender<ApiRequest>;

/// The mesh task dropped the question: it is shutting down.
struct Gone;

pub(super) fn router(mesh: Mesh) -> Router {
    Router::new()
        .route(
            "/v1/status",
            get(async |State(mesh): State<Mesh>| answer(ask(&mesh, ApiRequest::Status)).await),
        )
        .route("/metrics", get(metrics))
        .route("/v1/netcheck", post(async |State(mesh): State<Mesh>| answer(check_nat(&mesh)).await))
        .route("/v1/ping", post(async |State(mesh): State<Mesh>, Json(to)| answer(ping(&mesh, to)).await))
        .route("/v1/pins", get(async |State(mesh): State<Mesh>| answer(ask(&mesh, ApiRequest::Pins)).await))
        .route("/v1/peers/add", post(add_peer))
        .route("/v1/peers/remove", post(remove_peer))
        .route("/v1/explain", post(explain))
        .route("/v1/leave", post(leave))
        .route(
            "/v1/reload",
            post(async |State(mesh): State<Mesh>| answer(ask(&mesh, ApiRequest::Reload)).await),
        )
        .with_state(mesh)
}

async fn metrics(State(mesh): State<Mesh>) -> Response {
    match timeout(PATIENCE, ask(&mesh, ApiRequest::Status)).await {
        Ok(Ok(status)) => ([(header::CONTENT_TYPE, OPENMETRICS)], metrics::render(&status)).into_response(),
        Ok(Err(Gone)) | Err(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

async fn add_peer(State(mesh): State<Mesh>, Json(pin): Json<Pin>) -> Response {
    answer(ask(&mesh, |reply| ApiRequest::AddPeer(pin, reply))).await
}

async fn remove_peer(State(mesh): State<Mesh>, Json(removal): Json<Removal>) -> Response {
    answer(ask(&mesh, |reply| ApiRequest::RemovePeer(removal, reply))).await
}

async fn explain(State(mesh): State<Mesh>, Json(Target { key }): Json<Target>) -> Response {
    answer(ask(&mesh, |reply| ApiRequest::Explain(key, reply))).await
}

async fn leave(State(mesh): State<Mesh>, Json(leaving): Json<Leaving>) -> Response {
    answer(ask(&mesh, |reply| ApiRequest::Leave(leaving, reply))).await
}

async fn answer<T: Serialize>(asked: impl Future<Output = Result<T, Gone>>) -> Response {
    match timeout(PATIENCE, asked).await {
        Ok(Ok(value)) => Json(value).into_response(),
        Ok(Err(Gone)) => (StatusCode::SERVICE_UNAVAILABLE, "the daemon is shutting down").into_response(),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "the daemon is too busy to answer").into_response(),
    }
}

async fn ask<T>(mesh: &Mesh, question: impl FnOnce(oneshot::Sender<T>) -> ApiRequest) -> Result<T, Gone> {
    let (reply, answer) = oneshot::channel();
    mesh.send(question(reply)).await.map_err(|_| Gone)?;
    answer.await.map_err(|_| Gone)
}

/// Has the NAT looked at anew and waits until that is done. Where it takes too long, the report says so itself.
async fn check_nat(mesh: &Mesh) -> Result<Report, Gone> {
    let end = Instant::now() + NAT_PATIENCE;
    let mut report = ask(mesh, ApiRequest::CheckNat).await?;
    let mut servers = report.servers.iter().map(|server| server.address);
    let server = servers.find_map(|address| match address {
        SocketAddr::V4(address) => Some(address),
        SocketAddr::V6(_) => None,
    });
    // Nobody's way there is as good as no router that says anything.
    let hops = server.and_then(|server| Hops::send(server).ok());
    while report.checking && Instant::now() < end {
        tokio::time::sleep(POLL_INTERVAL).await;
        report = ask(mesh, ApiRequest::NatReport).await?;
    }
    if let Some(hops) = hops {
        report.note_routers(hops.routers().await);
    }
    Ok(report)
}

/// Pings a peer once. `None` if it does not answer in time.
async fn ping(mesh: &Mesh, Target { key }: Target) -> Result<Option<Pong>, Gone> {
    let end = Instant::now() + PING_PATIENCE;
    let before = ask(mesh, |reply| ApiRequest::Ping(key, reply)).await?;
    loop {
        let last = ask(mesh, |reply| ApiRequest::LastAnswer(key, reply)).await?;
        if last != before || Instant::now() >= end {
            return Ok(last.filter(|_| last != before).map(Pong::from));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}
