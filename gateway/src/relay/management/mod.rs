//! The operator's requests over HTTP (NIP-86): who asks, what is changed, and what follows from it.

mod auth;
mod methods;
mod params;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    HeaderMap, Request, Response, StatusCode,
    body::Incoming,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE},
};
use serde_json::{Value, json};
use url::Url;

use super::{
    Relay,
    forwarded::Client,
    http::{Answer, has_token},
};
use crate::{
    clock::unix_now,
    pipeline::EventWriter,
    protocol::{PublicKey, VerifiedEvent},
    tasks::{self, Tasks},
};
use auth::{Asked, Replays};

/// The content type of requests and answers.
const RPC: &str = "application/nostr+json+rpc";
/// Longest request, in bytes.
const MAX_BODY: usize = 64 * 1024;
/// How long a client may take to send it.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Who may change the rules, and what it takes to carry the changes out.
pub struct Management {
    admins: BTreeSet<PublicKey>,
    writer: Arc<dyn EventWriter>,
    replays: Replays,
    /// Unix seconds. What was signed before may have been used before the last restart.
    started: u64,
}

impl Management {
    /// `None` when nobody is an admin.
    pub fn new(admins: &[PublicKey], writer: Arc<dyn EventWriter>) -> Option<Self> {
        let admins: BTreeSet<_> = admins.iter().copied().collect();
        let started = unix_now();
        (!admins.is_empty()).then(|| Self { admins, writer, replays: Replays::default(), started })
    }
}

/// Whether a POST is a request of this kind, and there is somebody who may make one.
pub(super) fn is_meant(relay: &Relay, headers: &HeaderMap) -> bool {
    relay.management.is_some() && has_token(headers, CONTENT_TYPE, RPC)
}

/// Answers a request to the relay's root URL.
pub(super) async fn answer(
    relay: Arc<Relay>,
    client: Client,
    request: Request<Incoming>,
    tasks: &Tasks,
) -> Answer {
    let Some(management) = &relay.management else {
        return failure(StatusCode::NOT_FOUND, "this relay is not managed over HTTP");
    };
    let query = request.uri().query().map(str::to_owned);
    let authorization = request.headers().get(AUTHORIZATION).cloned();
    let body = Limited::new(request.into_body(), MAX_BODY).collect();
    let body = match tokio::time::timeout(BODY_TIMEOUT, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(_)) => {
            let text = format!("a request has at most {MAX_BODY} bytes");
            return failure(StatusCode::PAYLOAD_TOO_LARGE, &text);
        }
        Err(_) => return failure(StatusCode::REQUEST_TIMEOUT, "the request did not come"),
    };
    let url = Url::parse(&relay.config.url).ok();
    let path = url.as_ref().map_or("/", Url::path);
    let asked = Asked { query: query.as_deref(), path, body: &body, own: &relay.own_urls };
    let admin = match management.admin(authorization.as_ref(), &asked).await {
        Ok(admin) => admin,
        Err((code, why)) => return failure(code, &why),
    };
    let call: methods::Call = match serde_json::from_slice(&body) {
        Ok(call) => call,
        Err(_) => {
            let why = "a request is {\"method\": \"…\", \"params\": […]} in JSON";
            return failure(StatusCode::BAD_REQUEST, why);
        }
    };
    let caller = methods::Caller { relay: &relay, management, address: client.address, tasks };
    let result = caller.call(&call).await;
    match &result {
        Ok(_) if call.changes() => {
            tracing::info!(%admin, method = call.method(), "the relay's rules were changed");
        }
        Ok(_) => {}
        Err(why) => tracing::info!(%admin, method = call.method(), why, "a request was refused"),
    }
    match result {
        Ok(result) => json(StatusCode::OK, &json!({ "result": result })),
        Err(why) => failure(StatusCode::OK, &why),
    }
}

impl Management {
    /// The admin who signed this very request (NIP-98).
    async fn admin(
        &self,
        authorization: Option<&HeaderValue>,
        asked: &Asked<'_>,
    ) -> Result<PublicKey, (StatusCode, String)> {
        let unauthorized = |why: &str| (StatusCode::UNAUTHORIZED, why.to_owned());
        let event = auth::event(authorization).map_err(unauthorized)?;
        let now = unix_now();
        auth::check(&event, asked, now).map_err(unauthorized)?;
        if event.created_at < self.started {
            return Err(unauthorized("it was signed before this relay started; sign it again"));
        }
        let verified = tasks::blocking(move || VerifiedEvent::verify(event)).await;
        let event = match verified {
            Ok(Ok(event)) => event,
            Ok(Err(error)) => return Err(unauthorized(&error.to_string())),
            Err(_) => return Err(unauthorized("the signature could not be checked")),
        };
        if !self.admins.contains(&event.pubkey) {
            let why = "this key is no admin of this relay (relay.admins)";
            return Err((StatusCode::FORBIDDEN, why.to_owned()));
        }
        // Only what admins signed is remembered: nobody else can fill the memory.
        self.replays.remember(event.id, event.created_at, now).map_err(unauthorized)?;
        Ok(event.pubkey)
    }
}

fn failure(code: StatusCode, why: &str) -> Answer {
    json(code, &json!({ "result": null, "error": why }))
}

fn json(code: StatusCode, body: &Value) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(body.to_string())));
    *answer.status_mut() = code;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(RPC));
    if code == StatusCode::UNAUTHORIZED {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Nostr"));
    }
    answer
}
