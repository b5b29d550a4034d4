//! The bytes of a comparison: frames on one bidirectional stream, in both directions.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::{
    gossip::fetch::wire::WireError,
    pipeline::Span,
    protocol::{EventId, kinds::Part},
};

/// The longest negentropy message.
pub const MAX_MESSAGE: usize = 120_000;
/// The longest frame: a message and what stands before it.
const MAX_FRAME: usize = MAX_MESSAGE + 64;
/// Ids in one OFFER.
pub const MAX_OFFERED: usize = 3_000;

/// What both sides say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// First, from both sides: the state of what this side has, as 16 bytes that mean nothing else,
    /// and the time that it keeps of each part.
    Hello { state: [u8; 16], spans: [Span; 3] },
    /// Begins a range: the part, its span of time, and the first message about it.
    Open { part: Part, span: Span, message: Vec<u8> },
    /// A negentropy message about the open range.
    Compare(Vec<u8>),
    /// Answers OPEN: too many for one range; begin again with this time as the start of it.
    Split(u64),
    /// Ids that the other side lacks.
    Offer(Vec<EventId>),
    /// All was offered: fetch it, and say when that is done.
    Settle,
    /// Still fetching.
    Pulling,
    /// Done with what was offered.
    Settled,
    /// Instead of HELLO: busy, or not in this topic.
    NotNow,
}

const HELLO: u8 = 1;
const OPEN: u8 = 2;
const COMPARE: u8 = 3;
const SPLIT: u8 = 4;
const OFFER: u8 = 5;
const SETTLE: u8 = 6;
const PULLING: u8 = 7;
const SETTLED: u8 = 8;
const NOT_NOW: u8 = 9;

fn put_span(bytes: &mut Vec<u8>, span: &Span) {
    bytes.extend_from_slice(&span.from.to_be_bytes());
    bytes.extend_from_slice(&span.until.to_be_bytes());
}

/// Length and bytes of a frame.
pub fn encode(frame: &Frame) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    match frame {
        Frame::Hello { state, spans } => {
            bytes.push(HELLO);
            bytes.extend_from_slice(state);
            spans.iter().for_each(|span| put_span(&mut bytes, span));
        }
        Frame::Open { part, span, message } => {
            bytes.extend_from_slice(&[OPEN, part.number()]);
            put_span(&mut bytes, span);
            bytes.extend_from_slice(message);
        }
        Frame::Compare(message) => {
            bytes.push(COMPARE);
            bytes.extend_from_slice(message);
        }
        Frame::Split(from) => {
            bytes.push(SPLIT);
            bytes.extend_from_slice(&from.to_be_bytes());
        }
        Frame::Offer(ids) => {
            bytes.push(OFFER);
            ids.iter().for_each(|id| bytes.extend_from_slice(&id.0));
        }
        Frame::Settle => bytes.push(SETTLE),
        Frame::Pulling => bytes.push(PULLING),
        Frame::Settled => bytes.push(SETTLED),
        Frame::NotNow => bytes.push(NOT_NOW),
    }
    let length = u32::try_from(bytes.len() - 4).unwrap_or(u32::MAX);
    bytes[..4].copy_from_slice(&length.to_be_bytes());
    bytes
}

/// Writes a frame.
pub async fn write(stream: &mut (impl AsyncWrite + Unpin), frame: &Frame) -> io::Result<usize> {
    let bytes = encode(frame);
    stream.write_all(&bytes).await?;
    Ok(bytes.len())
}

/// Reads the next frame; `None` at the end of the stream. Takes no more memory than the longest one.
pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<Frame>, WireError> {
    let mut length = [0; 4];
    if stream.read(&mut length[..1]).await? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut length[1..]).await?;
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length == 0 || length > MAX_FRAME {
        return Err(WireError::Malformed("a frame's length"));
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    decode(&bytes).map(Some)
}

fn decode(bytes: &[u8]) -> Result<Frame, WireError> {
    let mut rest = Rest(bytes);
    let frame = match rest.u8()? {
        HELLO => {
            Frame::Hello { state: rest.array()?, spans: [rest.span()?, rest.span()?, rest.span()?] }
        }
        OPEN => {
            let part = Part::numbered(rest.u8()?).ok_or(WireError::Malformed("a part"))?;
            Frame::Open { part, span: rest.span()?, message: rest.all() }
        }
        COMPARE => Frame::Compare(rest.all()),
        SPLIT => Frame::Split(rest.u64()?),
        OFFER => {
            let (ids, odd) = rest.0.as_chunks::<32>();
            if !odd.is_empty() || ids.is_empty() || ids.len() > MAX_OFFERED {
                return Err(WireError::Malformed("an offer"));
            }
            rest = Rest(&[]);
            Frame::Offer(ids.iter().copied().map(EventId).collect())
        }
        SETTLE => Frame::Settle,
        PULLING => Frame::Pulling,
        SETTLED => Frame::Settled,
        NOT_NOW => Frame::NotNow,
        _ => return Err(WireError::Malformed("a frame's type")),
    };
    if rest.0.is_empty() { Ok(frame) } else { Err(WireError::Malformed("a frame's end")) }
}

struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (first, rest) =
            self.0.split_first_chunk().ok_or(WireError::Malformed("a short frame"))?;
        self.0 = rest;
        Ok(*first)
    }

    fn u8(&mut self) -> Result<u8, WireError> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u64(&mut self) -> Result<u64, WireError> {
        self.array().map(u64::from_be_bytes)
    }

    fn span(&mut self) -> Result<Span, WireError> {
        Ok(Span { from: self.u64()?, until: self.u64()? })
    }

    fn all(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0).to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_round_trip_and_are_bounded() {
        let span = Span { from: 5, until: u64::MAX };
        let frames = [
            Frame::Hello { state: [7; 16], spans: [span; 3] },
            Frame::Open { part: Part::Profiles, span, message: vec![1, 2] },
            Frame::Compare(vec![0; MAX_MESSAGE]),
            Frame::Split(9),
            Frame::Offer(vec![EventId([1; 32]); MAX_OFFERED]),
            Frame::Settle,
            Frame::Pulling,
            Frame::Settled,
            Frame::NotNow,
        ];
        for frame in &frames {
            let bytes = encode(frame);
            let mut stream = &bytes[..];
            assert_eq!(read(&mut stream).await.unwrap().as_ref(), Some(frame));
            assert_eq!(read(&mut stream).await.unwrap(), None);
            for cut in 1..bytes.len().min(40) {
                assert!(read(&mut &bytes[..cut]).await.is_err(), "{cut} bytes");
            }
        }
        let refused = async |bytes: &[u8]| read(&mut &bytes[..]).await.unwrap_err().is_lie();
        assert!(refused(&[0xff, 0xff, 0xff, 0xff]).await, "too long");
        assert!(refused(&[0, 0, 0, 0]).await, "empty");
        assert!(refused(&[0, 0, 0, 1, 99]).await, "unknown type");
        assert!(refused(&[0, 0, 0, 2, SETTLE, 0]).await, "more than there is to it");
        assert!(refused(&[0, 0, 0, 3, OFFER, 1, 2]).await, "half an id");
        assert!(refused(&[0, 0, 0, 1, OFFER]).await, "nothing offered");
    }
}
