//! What the operator sees and does while the gateway runs: a listener that only tells (metrics, state,
//! health), and the control socket, on which commands are given too.

pub mod api;
pub mod config;
pub mod http;
#[cfg(unix)]
pub mod socket;

use std::{sync::Arc, time::Duration};

use hyper::{Method, Request, StatusCode, Uri, body::Incoming, header::HOST};
use tokio::{net::TcpListener, sync::Semaphore};

pub use config::AdminConfig;

use crate::{metrics::Metrics, tasks::Tasks};
use api::{Command, Control};
use http::Answer;

/// What the listeners can tell and do.
pub struct Admin {
    pub metrics: Arc<Metrics>,
    /// Brings the figures up to date that nobody counts as they change.
    pub measure: Box<dyn Fn() + Send + Sync>,
    pub control: Arc<dyn Control>,
    /// What keeps the gateway from its work at the moment, for `/health`.
    pub trouble: Box<dyn Fn() -> Option<&'static str> + Send + Sync>,
}

/// Requests at once.
const MAX_CONNECTIONS: usize = 32;
/// How long one connection may last.
const DEADLINE: Duration = Duration::from_secs(30);

impl Admin {
    /// Serves the TCP listener until the token of `tasks` is cancelled.
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
            let admin = self.clone();
            let serving = async move {
                let answer = move |request| admin.clone().look(request);
                let served = http::serve(stream, answer);
                if let Ok(Err(error)) = tokio::time::timeout(DEADLINE, served).await {
                    tracing::debug!(%error, "an admin request failed");
                }
                drop(permit);
            };
            let token = tasks.token().clone();
            tasks.spawn("admin", async move {
                token.run_until_cancelled(serving).await;
            });
        }
    }

    /// Answers a request on the TCP listener, which changes nothing.
    async fn look(self: Arc<Self>, request: Request<Incoming>) -> Answer {
        if !is_addressed_directly(&request) {
            let why = "the admin listener is addressed by IP address or as localhost\n";
            return http::text(StatusCode::FORBIDDEN, why);
        }
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return http::text(StatusCode::METHOD_NOT_ALLOWED, "GET only\n");
        }
        let path = request.uri().path();
        if let Some(command) = api::readable(path) {
            return self.carry_out(command).await;
        }
        match path {
            "/metrics" => {
                (self.measure)();
                let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                http::whole(StatusCode::OK, kind, self.metrics.render())
            }
            "/health" => match (self.trouble)() {
                None => http::text(StatusCode::OK, "ok\n"),
                Some(why) => http::text(StatusCode::SERVICE_UNAVAILABLE, why),
            },
            "/" => http::text(
                StatusCode::OK,
                "/metrics\n/status\n/topics\n/peers\n/plugins\n/health\n",
            ),
            _ => http::text(StatusCode::NOT_FOUND, "not found\n"),
        }
    }

    async fn carry_out(&self, command: Command) -> Answer {
        http::reply(self.control.clone().run(command).await)
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
