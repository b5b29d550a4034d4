//! What the relay's port answers over HTTP: the upgrade, the NIP-11 document, health, and the
//! operator's requests (NIP-86).

use std::{
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::{Arc, atomic::Ordering},
};

use bytes::Bytes;
use data_encoding::BASE64;
use http_body_util::Full;
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::Incoming,
    header::{
        ACCEPT, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
        ACCESS_CONTROL_ALLOW_ORIGIN, ALLOW, CONNECTION, CONTENT_TYPE, HeaderValue,
        SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE,
    },
};
use hyper_util::rt::TokioIo;
use percent_encoding::percent_decode_str;
use tokio::sync::OwnedSemaphorePermit;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tracing::Instrument;

use super::{
    Relay,
    forwarded::Client,
    management, nip11,
    session::{self, Visitor},
};
use crate::{
    pipeline::{Scope, SharedViewer, Visit},
    protocol::{Reason, TopicName},
    tasks::Tasks,
};

pub(super) type Answer = Response<Full<Bytes>>;

/// A connection that was accepted: its number and its two ends.
#[derive(Clone, Copy)]
pub(super) struct Accepted {
    pub connection: u64,
    pub peer: IpAddr,
    pub here: Option<SocketAddr>,
}

/// Answers one request. An upgraded connection goes on as a session of its own.
/// It holds the permit as long as it lives.
pub(super) async fn answer(
    request: Request<Incoming>,
    accepted: Accepted,
    relay: Arc<Relay>,
    permit: Arc<OwnedSemaphorePermit>,
    tasks: &Tasks,
) -> Answer {
    let client = Client::of(accepted.peer, request.headers(), &relay.config.trusted_proxies);
    if client.unnamed && !relay.silent_proxy.swap(true, Ordering::Relaxed) {
        tracing::warn!(
            proxy = %client.address,
            "a proxy of relay.trusted_proxies does not send X-Forwarded-For: whoever comes through \
             it, or from its address, shares the limits of one stranger"
        );
    }
    if relay.moderation.blocks(client.address) {
        return blocked(&relay);
    }
    if !client.local
        && let Err(reason) = relay.rates.request(client.address)
    {
        return too_many(&relay, "requests", &reason);
    }
    let trusted = is_trusted(&client, &request, &relay);
    let Some(place) = place(request.uri().path(), trusted, &relay) else {
        return text(StatusCode::NOT_FOUND, "there is no relay at this path\n");
    };
    let scope = match place {
        Place::Health => return health(&relay),
        Place::UnknownTopic(name) => {
            let asked = name.filter(|_| trusted && is_upgrade(&request));
            match visit(&relay, asked).await {
                Ok(scope) => scope,
                Err(refused) => return refused,
            }
        }
        Place::Relay(scope) => scope,
    };
    match *request.method() {
        Method::OPTIONS => return with_cors(status(StatusCode::NO_CONTENT)),
        Method::POST if scope == Scope::All && management::is_meant(&relay, request.headers()) => {
            return with_cors(management::answer(relay, client, request, tasks).await);
        }
        Method::GET | Method::HEAD => {}
        _ => {
            let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "GET only\n");
            answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD, OPTIONS"));
            return answer;
        }
    }
    let headers = request.headers();
    if is_upgrade(&request) {
        return upgrade(request, client, accepted, scope, relay, permit, tasks);
    }
    if accepts_nostr_json(headers) {
        document(&relay, &scope)
    } else {
        text(StatusCode::OK, greeting(&scope))
    }
}

fn is_trusted(client: &Client, request: &Request<Incoming>, relay: &Relay) -> bool {
    let origins = &relay.config.trusted_origins;
    client.is_trusted(request.uri(), request.headers(), origins, &relay.own_urls)
}

fn upgrade(
    mut request: Request<Incoming>,
    client: Client,
    Accepted { connection, here, .. }: Accepted,
    scope: Scope,
    relay: Arc<Relay>,
    permit: Arc<OwnedSemaphorePermit>,
    tasks: &Tasks,
) -> Answer {
    let key = match upgrade_key(request.headers()) {
        Ok(key) => key,
        Err(why) => {
            let mut answer = text(StatusCode::BAD_REQUEST, why);
            answer.headers_mut().insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
            return answer;
        }
    };
    let accept = derive_accept_key(key.as_bytes());
    let trusted = is_trusted(&client, &request, &relay);
    // A web page is a stranger, also on this machine.
    let rates = if client.local && trusted {
        None
    } else {
        match relay.rates.connect(client.address) {
            Ok(rates) => Some(rates),
            Err(reason) => return too_many(&relay, "connections", &reason),
        }
    };
    let viewer = SharedViewer::new(trusted, &relay.private);
    // Whoever blocks the address now finds it listed; whoever did so before is found here.
    let listed = relay.connections.list(connection, client.address, viewer.clone());
    if relay.moderation.blocks(client.address) {
        return blocked(&relay);
    }
    let visit = match &scope {
        Scope::Topic(name) if !relay.private.contains(name) => match relay.topics.enter(name) {
            Some(visit) => Some(visit),
            None => return text(StatusCode::NOT_FOUND, "this gateway has just left that topic\n"),
        },
        _ => None,
    };
    let left = visit.as_ref().map(Visit::left);
    let upgrade = hyper::upgrade::on(&mut request);
    let span = tracing::debug_span!("conn", id = connection);
    // Thousands of sessions are on no topic's URL.
    let token = match visit {
        Some(_) => tasks.token().child_token(),
        None => tasks.token().clone(),
    };
    let address = client.address;
    // In a box: the session would carry the room for it all its life.
    let visitor =
        Box::new(Visitor { connection, address, here, trusted, viewer, scope, visit, rates });
    tasks.spawn(
        "session",
        async move {
            match upgrade.await {
                Ok(stream) => {
                    let end = token.clone();
                    let stream = TokioIo::new(stream);
                    let mut session = pin!(session::run(stream, visitor, relay, end, permit));
                    let left = async {
                        match left {
                            Some(left) => left.await,
                            None => std::future::pending().await,
                        }
                    };
                    tokio::select! {
                        () = &mut session => {}
                        () = left => {
                            tracing::debug!("the topic was left");
                            token.cancel();
                            session.await;
                        }
                        () = listed.end.cancelled() => {
                            tracing::debug!("no longer welcome; closed");
                        }
                    }
                }
                Err(error) => tracing::debug!(%error, "the upgrade failed"),
            }
        }
        .instrument(span),
    );
    let mut answer = status(StatusCode::SWITCHING_PROTOCOLS);
    let headers = answer.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(accept) = HeaderValue::from_str(&accept) {
        headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    }
    answer
}

enum Place {
    Relay(Scope),
    /// Its name, when it is one.
    UnknownTopic(Option<TopicName>),
    Health,
}

/// What a path stands for. NIP-01: a path may only exist where it changes behaviour.
///
/// That a private topic is here is private too: whoever is not trusted, as a foreign web page, learns it
/// only of one with readers, because they have to come in before they can authenticate (NIP-42).
fn place(path: &str, trusted: bool, relay: &Relay) -> Option<Place> {
    match path {
        "/" | "" => Some(Place::Relay(Scope::All)),
        "/health" => Some(Place::Health),
        _ => {
            let name = path.strip_prefix("/topic/")?;
            // NDK appends a slash to every relay's URL; one in a topic's name is escaped.
            let name = name.strip_suffix('/').unwrap_or(name);
            if name.is_empty() || name.contains('/') {
                return None;
            }
            let name = percent_decode_str(name).decode_utf8().ok()?;
            let is_here = |name: &TopicName| match relay.private.contains(name) {
                true => trusted || relay.private.has_readers(name),
                false => relay.topics.contains(name.as_str()),
            };
            match TopicName::new(&name) {
                Ok(name) if is_here(&name) => Some(Place::Relay(Scope::Topic(name))),
                name => Some(Place::UnknownTopic(name.ok())),
            }
        }
    }
}

/// Whether a client wants to stay.
fn is_upgrade(request: &Request<Incoming>) -> bool {
    request.method() == Method::GET && has_token(request.headers(), UPGRADE, "websocket")
}

/// Joins the topic that a client may visit: a local program, or a page in `relay.trusted_origins`. Any
/// other web page could make this gateway show up wherever it likes.
async fn visit(relay: &Relay, topic: Option<TopicName>) -> Result<Scope, Answer> {
    let (Some(name), Some(door)) = (topic, &relay.door) else {
        let absent = "this gateway is not in that topic (topics.join)\n";
        return Err(text(StatusCode::NOT_FOUND, absent));
    };
    match door.clone().visit(name.clone()).await {
        Ok(()) => Ok(Scope::Topic(name)),
        Err(why) => Err(text(StatusCode::NOT_FOUND, format!("{why}\n"))),
    }
}

/// RFC 6455 §4.2.1.
fn upgrade_key(headers: &HeaderMap) -> Result<&HeaderValue, &'static str> {
    if !has_token(headers, CONNECTION, "upgrade") {
        return Err("the Connection header does not say Upgrade\n");
    }
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err("this relay speaks version 13 of the websocket protocol\n");
    }
    headers
        .get(SEC_WEBSOCKET_KEY)
        .filter(|key| BASE64.decode(key.as_bytes()).is_ok_and(|nonce| nonce.len() == 16))
        .ok_or("the Sec-WebSocket-Key header is not 16 bytes in base64\n")
}

pub(super) fn has_token(headers: &HeaderMap, name: hyper::header::HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|value| value.split(';').next())
        .any(|part| part.trim().eq_ignore_ascii_case(token))
}

fn accepts_nostr_json(headers: &HeaderMap) -> bool {
    has_token(headers, ACCEPT, "application/nostr+json")
}

fn document(relay: &Relay, scope: &Scope) -> Answer {
    let about = nip11::About {
        config: &relay.config,
        limits: &relay.limits,
        access: &relay.access,
        rules: &relay.moderation.rules(),
        search: relay.search,
        managed: relay.management.is_some(),
    };
    let document = nip11::document(&about, scope);
    let mut answer = Response::new(Full::new(Bytes::from(document)));
    let content_type = HeaderValue::from_static("application/nostr+json");
    answer.headers_mut().insert(CONTENT_TYPE, content_type);
    with_cors(answer)
}

/// NIP-11 and NIP-86 are for web pages too. A `*` does not stand for `Authorization` (Fetch standard).
fn with_cors(mut answer: Answer) -> Answer {
    let headers = answer.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(
        ACCESS_CONTROL_ALLOW_HEADERS,
        HeaderValue::from_static("*, Accept, Authorization, Content-Type"),
    );
    let methods = HeaderValue::from_static("GET, HEAD, OPTIONS, POST");
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, methods);
    answer
}

fn health(relay: &Relay) -> Answer {
    match (relay.trouble)() {
        None => text(StatusCode::OK, "ok\n"),
        Some(why) => text(StatusCode::SERVICE_UNAVAILABLE, why),
    }
}

fn greeting(scope: &Scope) -> &'static str {
    match scope {
        Scope::All => "This is a Nostr relay. Point a Nostr client at this address, with ws://.\n",
        Scope::Topic(_) => {
            "This is one topic of a Nostr relay. Point a Nostr client at this address, with ws://.\n"
        }
    }
}

fn status(status: StatusCode) -> Answer {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = status;
    answer
}

fn blocked(relay: &Relay) -> Answer {
    relay.count_limited("blocked");
    text(StatusCode::FORBIDDEN, "this address is blocked here\n")
}

fn too_many(relay: &Relay, cause: &'static str, reason: &Reason) -> Answer {
    relay.count_limited(cause);
    text(StatusCode::TOO_MANY_REQUESTS, format!("{reason}\n"))
}

fn text(code: StatusCode, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = code;
    let content_type = HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(CONTENT_TYPE, content_type);
    answer
}
