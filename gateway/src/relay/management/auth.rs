//! NIP-98: one signed event for one HTTP request.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use data_encoding::BASE64_NOPAD;
use hyper::header::HeaderValue;
use sha2::{Digest, Sha256};
use url::Url;

use crate::protocol::{Event, EventId, OwnUrls, hex, kinds};

/// How far `created_at` may be from now, in seconds.
const WINDOW_S: u64 = 60;
/// Events remembered at once. A minute has no room for more honest requests.
const MAX_REPLAYS: usize = 10_000;

/// The request that is to be authorized: a POST to the relay's root.
pub(super) struct Asked<'a> {
    pub query: Option<&'a str>,
    /// Where a proxy has put this relay: the path of `relay.url`.
    pub path: &'a str,
    pub body: &'a [u8],
    pub own: &'a OwnUrls,
}

/// The event in an `Authorization` header.
pub(super) fn event(authorization: Option<&HeaderValue>) -> Result<Event, &'static str> {
    let header = authorization.ok_or("the Authorization header is missing (NIP-98)")?;
    let (scheme, token) = header
        .to_str()
        .ok()
        .and_then(|text| text.trim().split_once(' '))
        .ok_or("the Authorization header is not \"Nostr\" and an event in base64")?;
    if !scheme.eq_ignore_ascii_case("nostr") {
        return Err("the Authorization scheme is not Nostr (NIP-98)");
    }
    // Some clients leave the padding out.
    let json = BASE64_NOPAD
        .decode(token.trim().trim_end_matches('=').as_bytes())
        .map_err(|_| "the token is not base64")?;
    let json = std::str::from_utf8(&json).map_err(|_| "the token is not an event")?;
    Event::parse(json).map_err(|_| "the token is not an event")
}

/// Everything but the signature. `now` is in Unix seconds.
pub(super) fn check(event: &Event, asked: &Asked<'_>, now: u64) -> Result<(), &'static str> {
    if event.kind != kinds::HTTP_AUTH {
        return Err("the event is not of kind 27235");
    }
    if event.created_at.abs_diff(now) > WINDOW_S {
        return Err("created_at is more than 60 seconds from now");
    }
    if !event.tag_values("u").next().is_some_and(|url| leads_here(url, asked)) {
        return Err("the u tag is not the URL of this relay (relay.url)");
    }
    if event.tag_values("method").next() != Some("POST") {
        return Err("the method tag is not POST");
    }
    let hash: [u8; 32] = Sha256::digest(asked.body).into();
    if event.tag_values("payload").next() != Some(hex::encode(&hash).as_str()) {
        return Err("the payload tag is not the SHA-256 of the request's body in hexadecimal");
    }
    Ok(())
}

/// NIP-98 wants the URL of the request, NIP-86 that of the relay: with the scheme of either.
fn leads_here(text: &str, asked: &Asked<'_>) -> bool {
    let websocket = match text.split_once("://") {
        Some(("http" | "ws", rest)) => format!("ws://{rest}"),
        Some(("https" | "wss", rest)) => format!("wss://{rest}"),
        _ => return false,
    };
    let Ok(url) = Url::parse(&websocket) else { return false };
    asked.own.contains(&websocket)
        && (url.path() == "/" || url.path() == asked.path)
        && url.query() == asked.query
        && url.fragment().is_none()
        && url.username().is_empty()
        && url.password().is_none()
}

/// The events of the last minutes: each is good for one request.
#[derive(Default)]
pub(super) struct Replays(Mutex<HashMap<EventId, u64>>);

impl Replays {
    /// Takes note of an event that is within its window.
    ///
    /// # Errors
    /// When it was used before, or there were too many.
    pub fn remember(&self, id: EventId, created_at: u64, now: u64) -> Result<(), &'static str> {
        let mut used = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if used.len() >= MAX_REPLAYS {
            used.retain(|_, until| *until >= now);
        }
        if used.contains_key(&id) {
            return Err("this event was used before; sign each request anew");
        }
        if used.len() >= MAX_REPLAYS {
            return Err("too many requests; try again in a minute");
        }
        used.insert(id, created_at + WINDOW_S);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use data_encoding::BASE64;

    use super::*;
    use crate::protocol::signing::Author;

    const NOW: u64 = 1_700_000_000;
    const URL: &str = "https://relay.example.org/";
    const BODY: &[u8] = br#"{"method":"supportedmethods","params":[]}"#;

    fn checked(
        kind: u16,
        at: u64,
        tags: &[&[&str]],
        query: Option<&str>,
    ) -> Result<(), &'static str> {
        let own = OwnUrls::new(["wss://relay.example.org", "ws://127.0.0.1:4869"]);
        let asked = Asked { query, path: "/relay", body: BODY, own: &own };
        check(&Author::new(1).sign(at, kind, tags, ""), &asked, NOW)
    }

    fn payload() -> String {
        hex::encode(&<[u8; 32]>::from(Sha256::digest(BODY)))
    }

    #[test]
    fn every_part_is_checked() {
        let payload = payload();
        let (u, method, hash) =
            (&["u", URL][..], &["method", "POST"][..], &["payload", payload.as_str()][..]);
        for at in [NOW, NOW - 60, NOW + 60] {
            assert_eq!(checked(27_235, at, &[u, method, hash], None), Ok(()));
        }
        for (kind, at, tags) in [
            (22_242, NOW, &[u, method, hash][..]),
            (27_235, NOW - 61, &[u, method, hash]),
            (27_235, NOW + 61, &[u, method, hash]),
            (27_235, NOW, &[method, hash]),
            (27_235, NOW, &[u, hash]),
            (27_235, NOW, &[u, method]),
            (27_235, NOW, &[u, &["method", "GET"], hash]),
            (27_235, NOW, &[u, method, &["payload", "00"]]),
            (27_235, NOW, &[u, method, &["payload"]]),
        ] {
            assert!(checked(kind, at, tags, None).is_err(), "{kind} {at} {tags:?}");
        }
    }

    #[test]
    fn the_url_is_this_relay_and_this_request() {
        let payload = payload();
        let with = |url: &str, query: Option<&str>| {
            checked(27_235, NOW, &[&["u", url], &["method", "POST"], &["payload", &payload]], query)
        };
        for url in [
            URL,
            "https://relay.example.org",
            "wss://relay.example.org/",
            "https://RELAY.example.org:443/",
            "http://127.0.0.1:4869/",
            "ws://127.0.0.1:4869",
            "https://relay.example.org/relay",
        ] {
            assert_eq!(with(url, None), Ok(()), "{url}");
        }
        assert_eq!(with("https://relay.example.org/?a=b", Some("a=b")), Ok(()));
        for (url, query) in [
            ("http://relay.example.org/", None),
            ("https://relay.example.org/topic/x", None),
            ("https://relay.example.org/?a=b", None),
            ("https://relay.example.org/", Some("a=b")),
            ("https://relay.example.org/#x", None),
            ("https://relay.example.org@evil.example/", None),
            ("https://x@relay.example.org/", None),
            ("https://relay.example.org.evil.example/", None),
            ("http://127.0.0.1/", None),
            ("ftp://relay.example.org/", None),
            ("relay.example.org", None),
            ("", None),
        ] {
            assert!(with(url, query).is_err(), "{url} {query:?}");
        }
    }

    #[test]
    fn the_header_is_the_scheme_and_an_event() {
        let signed = Author::new(1).sign(NOW, 27_235, &[], "");
        let read = |text: &str| event(Some(&text.parse().unwrap())).map(|event| event.id);
        let token = BASE64.encode(signed.json().as_bytes());
        assert_eq!(read(&format!("Nostr {token}")), Ok(signed.id));
        assert_eq!(read(&format!("nostr  {}", token.trim_end_matches('='))), Ok(signed.id));
        for wrong in ["", "Nostr", "Nostr ", "Nostr !", "Nostr e30=", "Basic e30="] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        assert!(read(&format!("Bearer {token}")).is_err() && event(None).is_err());
    }

    #[test]
    fn an_event_is_good_once_and_the_memory_is_bounded() {
        let replays = Replays::default();
        let id = |n: usize| {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&n.to_be_bytes());
            EventId(id)
        };
        assert!(replays.remember(id(0), NOW, NOW).is_ok());
        assert!(replays.remember(id(0), NOW, NOW + 60).is_err());
        for n in 1..MAX_REPLAYS {
            assert!(replays.remember(id(n), NOW, NOW).is_ok());
        }
        assert!(replays.remember(id(MAX_REPLAYS), NOW, NOW + 60).is_err(), "full");
        assert!(replays.remember(id(MAX_REPLAYS), NOW + 61, NOW + 61).is_ok(), "a minute later");
        assert_eq!(replays.0.lock().unwrap().len(), 1);
    }
}
