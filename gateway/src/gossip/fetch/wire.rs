//! The bytes of a fetch: one request and its answer on one bidirectional stream.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::protocol::{EventId, TopicName, topic::MAX_NAME_BYTES};

/// The most ids in one request.
pub const MAX_IDS: usize = 100;

const FETCH: u8 = 0x01;

/// A request: which events of which topic.
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
    #[error("a request is for 1 to {MAX_IDS} events")]
    Count,
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
        matches!(self, Self::TooMany | Self::Event(_) | Self::NotAsked | Self::Forged)
    }
}

/// The bytes of a request. At most [`MAX_IDS`] ids.
pub fn encode_request(request: &Request) -> Vec<u8> {
    let name = request.topic.as_str().as_bytes();
    // Both fit: a name has at most 128 bytes, and callers cut the ids.
    let name_length = u16::try_from(name.len()).unwrap_or(u16::MAX);
    let ids = &request.ids[..request.ids.len().min(MAX_IDS)];
    let count = u16::try_from(ids.len()).unwrap_or(u16::MAX);
    let mut bytes = Vec::with_capacity(5 + name.len() + 32 * ids.len());
    bytes.push(FETCH);
    bytes.extend_from_slice(&name_length.to_be_bytes());
    bytes.extend_from_slice(name);
    bytes.extend_from_slice(&count.to_be_bytes());
    ids.iter().for_each(|id| bytes.extend_from_slice(&id.0));
    bytes
}

/// Reads a request. Takes no more memory than the longest valid one.
pub async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> Result<Request, WireError> {
    match stream.read_u8().await? {
        FETCH => {}
        other => return Err(WireError::Type(other)),
    }
    let length = usize::from(stream.read_u16().await?);
    if length > MAX_NAME_BYTES {
        return Err(WireError::Topic);
    }
    let mut name = vec![0; length];
    stream.read_exact(&mut name).await?;
    let topic = str::from_utf8(&name)
        .ok()
        .and_then(|name| TopicName::new(name).ok())
        .ok_or(WireError::Topic)?;
    let count = usize::from(stream.read_u16().await?);
    if count == 0 || count > MAX_IDS {
        return Err(WireError::Count);
    }
    let mut ids = Vec::with_capacity(count);
    for _ in 0..count {
        let mut id = [0; 32];
        stream.read_exact(&mut id).await?;
        ids.push(EventId(id));
    }
    Ok(Request { topic, ids })
}

/// Writes one event of an answer.
pub async fn write_event(stream: &mut (impl AsyncWrite + Unpin), json: &str) -> io::Result<()> {
    let length = u32::try_from(json.len()).map_err(io::Error::other)?;
    stream.write_all(&length.to_be_bytes()).await?;
    stream.write_all(json.as_bytes()).await
}

/// Writes the end of an answer.
pub async fn write_end(stream: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    stream.write_all(&[0; 4]).await
}

/// Reads one event of an answer; `None` at its end. Nothing longer than `max` bytes is taken into
/// memory.
pub async fn read_event(
    stream: &mut (impl AsyncRead + Unpin),
    max: usize,
) -> Result<Option<String>, WireError> {
    let length = stream.read_u32().await?;
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if length == 0 {
        return Ok(None);
    }
    if length > max {
        return Err(WireError::TooLong(length));
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

    #[tokio::test]
    async fn requests_round_trip() {
        for count in [1, 2, MAX_IDS] {
            let bytes = encode_request(&request(count));
            assert_eq!(read_request(&mut &bytes[..]).await.unwrap(), request(count));
        }
        let bytes = encode_request(&request(1));
        assert_eq!(bytes[..10], [1, 0, 5, b'f', 0xc3, 0xb6, 0xc3, 0xb6, 0, 1]);
    }

    #[tokio::test]
    async fn malformed_requests_are_refused() {
        let good = encode_request(&request(2));
        for length in 0..good.len() {
            assert!(read_request(&mut &good[..length]).await.is_err(), "{length} bytes");
        }
        let refused = async |bytes: &[u8]| read_request(&mut &bytes[..]).await.unwrap_err();
        assert!(matches!(refused(&[2]).await, WireError::Type(2)));
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
        write_end(&mut bytes).await.unwrap();
        let mut stream = &bytes[..];
        assert_eq!(read_event(&mut stream, 7).await.unwrap().as_deref(), Some("{}"));
        assert_eq!(read_event(&mut stream, 7).await.unwrap().as_deref(), Some("{\"a\":1}"));
        assert_eq!(read_event(&mut stream, 7).await.unwrap(), None);
        assert!(matches!(read_event(&mut &bytes[..], 1).await, Err(WireError::TooLong(2))));
        assert!(matches!(read_event(&mut &[0xff; 4][..], 9).await, Err(WireError::TooLong(_))));
    }
}
