//! The admin listener: metrics for Prometheus, the gateway's state as JSON.

pub mod config;

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode, Uri,
    body::Incoming,
    header::{CONTENT_TYPE, HOST, HeaderValue},
    server::conn::http1,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::Semaphore};

pub use config::AdminConfig;

use crate::{metrics::Metrics, tasks::Tasks};

/// What the listener can tell.
pub struct Admin {
    pub metrics: Arc<Metrics>,
    /// The state of every part, for `/status`.
    pub status: Box<dyn Fn() -> serde_json::Value + Send + Sync>,
    /// What keeps the gateway from its work at the moment, for `/health`.
    pub trouble: Box<dyn Fn() -> Option<&'static str> + Send + Sync>,
}

/// Requests at once.
const MAX_CONNECTIONS: usize = 32;
/// How long one connection may last.
const DEADLINE: Duration = Duration::from_secs(30);

impl Admin {
    /// Serves until the token of `tasks` is cancelled.
    pub async fn run(self: Arc<Self>, socket: TcpListener, tasks: Tasks) {
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(permit) = permits.clone().acquire_owned().await else { return };
            let accepted = tokio::select! {
                () = tasks.token().cancelled() => return,
                accepted = socket.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept an admin connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let (admin, token) = (self.clone(), tasks.token().clone());
            tasks.spawn("admin", async move {
                let service = hyper::service::service_fn(move |request| {
                    let answer = admin.answer(&request);
                    async move { Ok::<_, Infallible>(answer) }
                });
                let mut http = http1::Builder::new();
                http.timer(TokioTimer::new()).header_read_timeout(DEADLINE).max_buf_size(16 * 1024);
                let served = http.serve_connection(TokioIo::new(stream), service);
                tokio::select! {
                    () = token.cancelled() => {}
                    result = tokio::time::timeout(DEADLINE, served) => {
                        if let Ok(Err(error)) = result {
                            tracing::debug!(%error, "an admin request failed");
                        }
                    }
                }
                drop(permit);
            });
        }
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        const TEXT: &str = "text/plain; charset=utf-8";
        if !is_addressed_directly(request) {
            let why = "the admin listener is addressed by IP address or as localhost\n";
            return answer(StatusCode::FORBIDDEN, TEXT, why.to_owned());
        }
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return answer(StatusCode::METHOD_NOT_ALLOWED, TEXT, "GET only\n".to_owned());
        }
        match request.uri().path() {
            "/metrics" => {
                let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                answer(StatusCode::OK, kind, self.metrics.render())
            }
            "/status" => answer(StatusCode::OK, "application/json", (self.status)().to_string()),
            "/health" => match (self.trouble)() {
                None => answer(StatusCode::OK, TEXT, "ok\n".to_owned()),
                Some(why) => answer(StatusCode::SERVICE_UNAVAILABLE, TEXT, why.to_owned()),
            },
            "/" => {
                let paths = "/metrics\n/status\n/health\n";
                answer(StatusCode::OK, TEXT, paths.to_owned())
            }
            _ => answer(StatusCode::NOT_FOUND, TEXT, "not found\n".to_owned()),
        }
    }
}

/// A web page can make a name of its own point to this machine (DNS rebinding) and would then be
/// allowed to read the answer; it cannot do so with an address.
fn is_addressed_directly(request: &Request<Incoming>) -> bool {
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok());
    host.and_then(|host| host.parse::<Uri>().ok()).is_some_and(|host| {
        let name = host.host().unwrap_or_default().trim_matches(['[', ']']);
        name.eq_ignore_ascii_case("localhost") || name.parse::<std::net::IpAddr>().is_ok()
    })
}

fn answer(code: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = code;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}
