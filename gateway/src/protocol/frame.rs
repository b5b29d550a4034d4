//! What gateways say to one another: gossip frames, and requests on the sync ALPN.
//!
//! `docs/protocol.md` describes the same bytes for somebody who writes another implementation.

use super::EventId;

/// The ALPN of the gateway's own streams.
pub const SYNC_ALPN: &[u8] = b"/nostr-gateway/sync/1";

/// The longest gossip message we send or accept, in bytes. iroh-gossip allows 4,096 with its own
/// header; a longer message is lost together with those after it, so there is a margin.
pub const MAX_GOSSIP_BYTES: usize = 4_000;

/// The most ids in one announcement.
pub const MAX_ANNOUNCED: usize = 100;

const ANNOUNCE: u8 = 0x01;

/// A gossip message of a public topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GossipFrame<'a> {
    /// First byte `{`: an event's JSON.
    Event(&'a str),
    /// First byte 0x01: ids of events that can be fetched over [`SYNC_ALPN`], 32 bytes each.
    Announce(&'a [u8]),
}

/// Why a frame was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("empty")]
    Empty,
    #[error("longer than {MAX_GOSSIP_BYTES} bytes")]
    TooLong,
    #[error("unknown type {0:#04x}")]
    Type(u8),
    #[error("not UTF-8")]
    Utf8,
    #[error("an announcement is 1 to {MAX_ANNOUNCED} ids of 32 bytes")]
    Announcement,
}

impl<'a> GossipFrame<'a> {
    pub fn decode(bytes: &'a [u8]) -> Result<Self, FrameError> {
        if bytes.len() > MAX_GOSSIP_BYTES {
            return Err(FrameError::TooLong);
        }
        match *bytes {
            [] => Err(FrameError::Empty),
            [b'{', ..] => str::from_utf8(bytes).map(Self::Event).map_err(|_| FrameError::Utf8),
            [ANNOUNCE, ref ids @ ..] => {
                if ids.is_empty() || ids.len() % 32 != 0 || ids.len() / 32 > MAX_ANNOUNCED {
                    return Err(FrameError::Announcement);
                }
                Ok(Self::Announce(ids))
            }
            [other, ..] => Err(FrameError::Type(other)),
        }
    }
}

/// The frame that announces these ids. At most [`MAX_ANNOUNCED`].
pub fn announce(ids: &[EventId]) -> Vec<u8> {
    debug_assert!(!ids.is_empty() && ids.len() <= MAX_ANNOUNCED);
    let mut bytes = Vec::with_capacity(1 + 32 * ids.len());
    bytes.push(ANNOUNCE);
    ids.iter().for_each(|id| bytes.extend_from_slice(&id.0));
    bytes
}

/// Splits concatenated 32-byte ids.
pub fn ids(bytes: &[u8]) -> Vec<EventId> {
    bytes.as_chunks::<32>().0.iter().map(|id| EventId(*id)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn announcements_round_trip() {
        let list: Vec<_> = (0..MAX_ANNOUNCED as u8).map(|n| EventId([n; 32])).collect();
        let bytes = announce(&list);
        assert!(bytes.len() <= MAX_GOSSIP_BYTES);
        let Ok(GossipFrame::Announce(raw)) = GossipFrame::decode(&bytes) else { panic!() };
        assert_eq!(ids(raw), list);
    }

    #[test]
    fn garbage_is_an_error() {
        assert_eq!(GossipFrame::decode(b""), Err(FrameError::Empty));
        assert_eq!(GossipFrame::decode(b"[1]"), Err(FrameError::Type(b'[')));
        assert_eq!(GossipFrame::decode(b"{\xff}"), Err(FrameError::Utf8));
        assert_eq!(GossipFrame::decode(&[1]), Err(FrameError::Announcement));
        assert_eq!(GossipFrame::decode(&[1; 32]), Err(FrameError::Announcement));
        assert_eq!(GossipFrame::decode(&[1; 1 + 32 * 101]), Err(FrameError::Announcement));
        assert_eq!(GossipFrame::decode(&[b'{'; 4_001]), Err(FrameError::TooLong));
    }
}
