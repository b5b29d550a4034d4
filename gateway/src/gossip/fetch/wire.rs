//! The bytes of requests on the sync ALPN: one request and its answer on one bidirectional stream.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::protocol::{EventId, TopicName, topic::MAX_NAME_BYTES};

/// The most ids in one request for announced events.
pub const MAX_IDS: usize = 100;
/// The most ids in one request for events that the other side said it has.
pub const MAX_TAKEN: usize = 1_000;
/// An answer ends before it exceeds this many bytes of events, unless the first event does alone; the
/// rest can be asked for again.
pub const ANSWER_BYTES: usize = 8 << 20;

/// The longest event that is passed over when it is too long; after a longer one the answer is not read
/// on.
const LONGEST_SKIPPED: usize = 32 << 20;

/// Types of requests. For announced events: the answer waits for those that are on their way.
pub const FETCH: u8 = 0x01;
/// To compare what both sides have in a topic.
pub const RECONCILE: u8 = 0x02;
/// There is something new to be had here.
pub const HINT: u8 = 0x03;
/// For events that the other side has: its answer waits for nothing.
pub const TAKE: u8 = 0x04;

/// The first byte of a message's length, with which the streams of private topics begin.
pub const PRIVATE: u8 = 0x00;

/// What a request for events names: which events of which topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub topic: TopicName,
    pub ids: Vec<EventId>,
}

/// Why a peer's bytes were not taken.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("unknown request type {0:#04x}")]
    Type(u8),
    #[error("malformed topic name")]
    Topic,
    #[error("too many ids, or none")]
    Count,
    #[error("malformed: {0}")]
    Malformed(&'static str),
    #[error("the ids could not be compared: {0}")]
    Compared(String),
    #[error("an event of {0} bytes is longer than we take")]
    TooLong(usize),
    #[error("more events than were asked for")]
    TooMany,
    #[error("not an event: {0}")]
    Event(String),
    #[error("an event that was not asked for")]
    NotAsked,
    #[error("an event with the id of another")]
    Forged,
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl WireError {
    /// Whether no honest gateway sends such a thing.
    pub const fn is_lie(&self) -> bool {
        !matches!(self, Self::Io(_) | Self::TooLong(_))
    }
}

/// What ends an answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rest {
    /// The answer was cut short: what is missing may be there.
    pub cut: bool,
    /// Those of the events that are not held any more, or never were wanted, or are longer than what is
    /// taken, with their `created_at`.
    pub gone: Vec<(u64, EventId)>,
}

/// The first bytes of a request of any type.
pub fn encode_opening(kind: u8, topic: &TopicName) -> Vec<u8> {
    let name = topic.as_str().as_bytes();
    // It fits: a name has at most 128 bytes.
    let length = u16::try_from(name.len()).unwrap_or(u16::MAX);
    let mut bytes = vec![kind];
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(name);
    bytes
}

/// The bytes of a [`FETCH`], or, with the longest event that is taken, of a [`TAKE`]. Callers cut the
/// ids.
pub fn encode_request(request: &Request, longest: Option<usize>) -> Vec<u8> {
    let kind = if longest.is_some() { TAKE } else { FETCH };
    let mut bytes = encode_opening(kind, &request.topic);
    if let Some(longest) = longest {
        let longest = u32::try_from(longest).unwrap_or(u32::MAX);
        bytes.extend_from_slice(&longest.to_be_bytes());
    }
    let count = u16::try_from(request.ids.len()).unwrap_or(u16::MAX);
    bytes.extend_from_slice(&count.to_be_bytes());
    request.ids.iter().for_each(|id| bytes.extend_from_slice(&id.0));
    bytes
}

/// Reads the type of a request.
pub async fn read_type(stream: &mut (impl AsyncRead + Unpin)) -> Result<u8, WireError> {
    match stream.read_u8().await? {
        kind @ (FETCH | RECONCILE | HINT | TAKE | PRIVATE) => Ok(kind),
        other => Err(WireError::Type(other)),
    }
}

/// Reads the topic of a request.
pub async fn read_topic(stream: &mut (impl AsyncRead + Unpin)) -> Result<TopicName, WireError> {
    let length = usize::from(stream.read_u16().await?);
    if length > MAX_NAME_BYTES {
        return Err(WireError::Topic);
    }
    let mut name = vec![0; length];
    stream.read_exact(&mut name).await?;
    let name = str::from_utf8(&name).ok().and_then(|name| TopicName::new(name).ok());
    name.ok_or(WireError::Topic)
}

/// Reads the ids of a request. Takes no more memory than the longest valid one.
pub async fn read_ids(
    stream: &mut (impl AsyncRead + Unpin),
    max: usize,
) -> Result<Vec<EventId>, WireError> {
    let count = usize::from(stream.read_u16().await?);
    if count == 0 || count > max {
        return Err(WireError::Count);
    }
    let mut ids = Vec::with_capacity(count);
    for _ in 0..count {
        let mut id = [0; 32];
        stream.read_exact(&mut id).await?;
        ids.push(EventId(id));
    }
    Ok(ids)
}

/// Writes one event of an answer.
pub async fn write_event(stream: &mut (impl AsyncWrite + Unpin), json: &str) -> io::Result<()> {
    let length = u32::try_from(json.len()).map_err(io::Error::other)?;
    stream.write_all(&length.to_be_bytes()).await?;
    stream.write_all(json.as_bytes()).await
}

/// Writes the end of an answer.
pub async fn write_end(stream: &mut (impl AsyncWrite + Unpin), rest: &Rest) -> io::Result<()> {
    let count = u16::try_from(rest.gone.len()).map_err(io::Error::other)?;
    let mut bytes = vec![0, 0, 0, 0, u8::from(rest.cut)];
    bytes.extend_from_slice(&count.to_be_bytes());
    for (created_at, id) in &rest.gone {
        bytes.extend_from_slice(&created_at.to_be_bytes());
        bytes.extend_from_slice(&id.0);
    }
    stream.write_all(&bytes).await
}

/// Reads what stands after the four zero bytes. `max` is how many ids were asked for.
pub async fn read_rest(
    stream: &mut (impl AsyncRead + Unpin),
    max: usize,
) -> Result<Rest, WireError> {
    let cut = match stream.read_u8().await? {
        0 => false,
        1 => true,
        _ => return Err(WireError::Malformed("the end of an answer")),
    };
    let count = usize::from(stream.read_u16().await?);
    if count > max {
        return Err(WireError::TooMany);
    }
    let mut gone = Vec::with_capacity(count);
    for _ in 0..count {
        let created_at = stream.read_u64().await?;
        let mut id = [0; 32];
        stream.read_exact(&mut id).await?;
        gone.push((created_at, EventId(id)));
    }
    Ok(Rest { cut, gone })
}

/// Reads one event of an answer; `None` at its end. Events longer than `max` bytes are passed over, so
/// that they do not keep the others from us; nothing longer is taken into memory.
pub async fn read_event(
    stream: &mut (impl AsyncRead + Unpin),
    max: usize,
) -> Result<Option<String>, WireError> {
    let length = loop {
        let length = stream.read_u32().await?;
        let bytes = usize::try_from(length).unwrap_or(usize::MAX);
        if bytes <= max {
            break bytes;
        }
        if bytes > LONGEST_SKIPPED {
            return Err(WireError::TooLong(bytes));
        }
        let mut event = (&mut *stream).take(length.into());
        if tokio::io::copy(&mut event, &mut tokio::io::sink()).await? < length.into() {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
    };
    if length == 0 {
        return Ok(None);
    }
    let mut json = vec![0; length];
    stream.read_exact(&mut json).await?;
    String::from_utf8(json).map(Some).map_err(|_| WireError::Event("not UTF-8".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(count: usize) -> Request {
        let ids = (0..count).map(|n| EventId([n as u8; 32])).collect();
        Request { topic: TopicName::new("föö").unwrap(), ids }
    }

    async fn read_request(stream: &mut &[u8]) -> Result<Request, WireError> {
        read_type(stream).await?;
        let topic = read_topic(stream).await?;
        Ok(Request { topic, ids: read_ids(stream, MAX_IDS).await? })
    }

    #[tokio::test]
    async fn requests_round_trip() {
        for count in [1, 2, MAX_IDS] {
            let bytes = encode_request(&request(count), None);
            assert_eq!(read_request(&mut &bytes[..]).await.unwrap(), request(count));
        }
        let bytes = encode_request(&request(1), Some(258));
        assert_eq!(bytes[..14], [4, 0, 5, b'f', 0xc3, 0xb6, 0xc3, 0xb6, 0, 0, 1, 2, 0, 1]);
        let bytes = encode_request(&request(1), None);
        assert_eq!(bytes[..10], [1, 0, 5, b'f', 0xc3, 0xb6, 0xc3, 0xb6, 0, 1]);
    }

    #[tokio::test]
    async fn malformed_requests_are_refused() {
        let good = encode_request(&request(2), None);
        for length in 0..good.len() {
            assert!(read_request(&mut &good[..length]).await.is_err(), "{length} bytes");
        }
        let refused = async |bytes: &[u8]| read_request(&mut &bytes[..]).await.unwrap_err();
        assert!(matches!(refused(&[9]).await, WireError::Type(9)));
        assert!(matches!(refused(&[1, 255, 255]).await, WireError::Topic));
        assert!(matches!(refused(&[1, 0, 1, 0xff]).await, WireError::Topic));
        assert!(matches!(refused(&[1, 0, 1, b'a', 0, 0]).await, WireError::Count));
        assert!(matches!(refused(&[1, 0, 1, b'a', 0, 101]).await, WireError::Count));
    }

    #[tokio::test]
    async fn answers_round_trip_and_are_bounded() {
        let mut bytes = Vec::new();
        write_event(&mut bytes, "{}").await.unwrap();
        write_event(&mut bytes, "{\"a\":1}").await.unwrap();
        let rest = Rest { cut: true, gone: vec![(7, EventId([3; 32]))] };
        write_end(&mut bytes, &rest).await.unwrap();
        let mut stream = &bytes[..];
        assert_eq!(read_event(&mut stream, 7).await.unwrap().as_deref(), Some("{}"));
        assert_eq!(read_event(&mut stream, 7).await.unwrap().as_deref(), Some("{\"a\":1}"));
        assert_eq!(read_event(&mut stream, 7).await.unwrap(), None);
        let after = stream;
        assert_eq!(read_rest(&mut stream, 1).await.unwrap(), rest);
        assert!(matches!(read_rest(&mut &after[..], 0).await, Err(WireError::TooMany)));
        let mut stream = &bytes[..];
        assert_eq!(read_event(&mut stream, 2).await.unwrap().as_deref(), Some("{}"));
        assert_eq!(read_event(&mut stream, 2).await.unwrap(), None, "the other is too long");
        assert_eq!(stream, after);
        let broken_off = [&[0, 0, 0, 9][..], b"1234"].concat();
        assert!(matches!(read_event(&mut &broken_off[..], 2).await, Err(WireError::Io(_))));
        assert!(matches!(read_event(&mut &[0xff; 4][..], 9).await, Err(WireError::TooLong(_))));
    }
}
