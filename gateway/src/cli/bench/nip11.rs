//! What the relay says of itself (NIP-11).

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::connection::Target;

const PATIENCE: Duration = Duration::from_secs(10);
const MAX_BYTES: usize = 1 << 20;

/// What is used of the document. A relay may leave out anything.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RelayInfo {
    pub name: Option<String>,
    pub software: Option<String>,
    pub version: Option<String>,
    pub supported_nips: Vec<serde_json::Value>,
}

impl RelayInfo {
    pub fn supports(&self, nip: u64) -> bool {
        self.supported_nips.iter().any(|number| number.as_u64() == Some(nip))
    }
}

/// Fetches the document. `None` when there is none that can be understood: it is optional.
pub async fn fetch(target: &Target) -> Option<RelayInfo> {
    let text = timeout(PATIENCE, get(target)).await.ok()??;
    serde_json::from_slice(&text).ok()
}

async fn get(target: &Target) -> Option<Bytes> {
    let stream = target.connect(None).await.ok()?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
    let request = Request::get(if target.path.is_empty() { "/" } else { &target.path })
        .header(header::HOST, &target.authority)
        .header(header::ACCEPT, "application/nostr+json")
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .ok()?;
    let body = async {
        let answer = sender.send_request(request).await.ok()?;
        let body = Limited::new(answer.into_body(), MAX_BYTES).collect().await.ok()?;
        Some(body.to_bytes())
    };
    tokio::pin!(body, connection);
    // The connection makes the body progress and may end before the last of it has been read.
    tokio::select! {
        body = &mut body => body,
        _ = &mut connection => body.await,
    }
}
