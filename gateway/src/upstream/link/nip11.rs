//! What a relay says of itself (NIP-11), as far as it is to be believed.

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, StatusCode, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::time::timeout;
use url::{Position, Url};

use super::{LinkOptions, dial, shown::shown};

/// The longest document read, in bytes.
const MAX_BYTES: usize = 256 * 1024;
/// A shorter message cannot hold an event: it is not a limit, but a lie.
const LEAST_MESSAGE: u64 = 1_024;
/// No id shows more work.
const MOST_POW: u64 = 256;

/// What a relay asks of its clients. What is absent, or makes no sense, is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RemoteLimits {
    pub document: Document,
    pub name: Option<String>,
    pub software: Option<String>,
    /// Subscriptions of one connection; at least 1.
    pub max_subscriptions: Option<usize>,
    /// Filters of one subscription; at least 1.
    pub max_filters: Option<usize>,
    /// Stored events of one filter; at least 1.
    pub max_limit: Option<u64>,
    pub default_limit: Option<u64>,
    /// Bytes of one message.
    pub max_message_length: Option<usize>,
    /// Leading zero bits of the ids of events that it takes (NIP-13).
    pub min_pow: u32,
    pub auth_required: bool,
    pub payment_required: bool,
    pub restricted_writes: bool,
    /// It says that it compares sets (NIP-77).
    pub negentropy: bool,
}

/// Whether there is a NIP-11 document.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Document {
    Read,
    #[default]
    Absent,
    /// There is something, and this is wrong with it.
    Unusable(String),
}

/// Reads the document. Whatever happens, the answer is limits that can be lived with.
pub(super) async fn read(url: &Url, options: &LinkOptions) -> RemoteLimits {
    match timeout(options.timeouts.document, get(url, options)).await {
        Ok(Ok(Some(body))) => parse(&body),
        Ok(Ok(None)) => RemoteLimits::default(),
        Ok(Err(why)) => unusable(why),
        Err(_) => {
            let seconds = options.timeouts.document.as_secs();
            unusable(format!("it did not come within {seconds} s"))
        }
    }
}

fn unusable(why: String) -> RemoteLimits {
    RemoteLimits { document: Document::Unusable(why), ..RemoteLimits::default() }
}

/// `None` when the relay has no document.
async fn get(url: &Url, options: &LinkOptions) -> Result<Option<Bytes>, String> {
    let stream = dial::connect(url, options).await.map_err(|error| error.to_string())?;
    let failed = |error: hyper::Error| error.to_string();
    let handshake = http1::Builder::new().max_buf_size(32 * 1024).handshake(TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(failed)?;
    let path = &url[Position::BeforePath..Position::AfterQuery];
    let request = Request::get(if path.is_empty() { "/" } else { path })
        .header(header::HOST, &url[Position::BeforeHost..Position::AfterPort])
        .header(header::ACCEPT, "application/nostr+json")
        .header(header::USER_AGENT, dial::AGENT)
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let body = async {
        let answer = sender.send_request(request).await.map_err(failed)?;
        if answer.status() != StatusCode::OK {
            return Ok(None);
        }
        let body = Limited::new(answer.into_body(), MAX_BYTES).collect().await;
        let body = body.map_err(|error| match error.downcast::<hyper::Error>() {
            Ok(error) => error.to_string(),
            Err(_) => format!("it is longer than {MAX_BYTES} bytes"),
        })?;
        Ok(Some(body.to_bytes()))
    };
    tokio::pin!(body, connection);
    // The connection makes the body progress and may end before the last of it has been read.
    tokio::select! {
        body = &mut body => body,
        _ = &mut connection => body.await,
    }
}

/// Each field by itself: one of the wrong type says nothing about the others.
fn parse(body: &[u8]) -> RemoteLimits {
    let document = match serde_json::from_slice::<Value>(body) {
        Ok(document) if document.is_object() => document,
        // A web page is what relays without a document have there.
        _ => return unusable("it is not a JSON object".to_owned()),
    };
    let limits = &document["limitation"];
    let number = |name: &str, least: u64| limits[name].as_u64().filter(|number| *number >= least);
    let size = |name: &str, least| number(name, least).and_then(|n| usize::try_from(n).ok());
    let flag = |name: &str| limits[name] == true;
    let text = |name: &str| document[name].as_str().map(shown).filter(|text| !text.is_empty());
    let nips = document["supported_nips"].as_array();
    RemoteLimits {
        document: Document::Read,
        name: text("name"),
        software: text("software"),
        max_subscriptions: size("max_subscriptions", 1),
        max_filters: size("max_filters", 1),
        max_limit: number("max_limit", 1),
        default_limit: number("default_limit", 1),
        max_message_length: size("max_message_length", LEAST_MESSAGE),
        min_pow: u32::try_from(number("min_pow_difficulty", 0).unwrap_or(0).min(MOST_POW))
            .unwrap_or(0),
        auth_required: flag("auth_required"),
        payment_required: flag("payment_required"),
        restricted_writes: flag("restricted_writes"),
        negentropy: nips.is_some_and(|nips| nips.iter().any(|nip| nip.as_u64() == Some(77))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_sense_is_left_out_and_the_rest_counts() {
        let read = parse(
            br#"{"name":7,"software":"x\u0007y","supported_nips":[1,"x",77],"limitation":{
                "max_subscriptions":0,"max_filters":"many","max_limit":500,"default_limit":-1,
                "max_message_length":10,"min_pow_difficulty":1e3,"auth_required":"yes",
                "payment_required":true}}"#,
        );
        let expected = RemoteLimits {
            document: Document::Read,
            software: Some("xy".to_owned()),
            max_limit: Some(500),
            payment_required: true,
            negentropy: true,
            ..RemoteLimits::default()
        };
        assert_eq!(read, expected);
        let strict = parse(br#"{"limitation":{"min_pow_difficulty":100000}}"#);
        assert_eq!(strict.min_pow, 256);
        for none in ["", "[]", "<html>", "\"x\"", "{\"a\":"] {
            assert!(matches!(parse(none.as_bytes()).document, Document::Unusable(_)), "{none}");
        }
        let wrong = parse(br#"{"limitation":[],"supported_nips":{"77":true}}"#);
        assert_eq!(wrong, RemoteLimits { document: Document::Read, ..RemoteLimits::default() });
    }
}
