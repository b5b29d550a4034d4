//! How a session ends: what is under way is answered, and the client is told why.

use std::time::Duration;

use futures_util::StreamExt;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::Session;
use crate::{protocol::message, relay::outbox::Gone};

/// How long the end of a session waits for what was published in it.
const PARTING: Duration = Duration::from_secs(5);

const TOPIC_LEFT: &str = "the gateway has left this topic";

/// Why a session ends.
pub(super) enum End {
    /// The client closed, or the connection broke.
    Left,
    /// The client does not read, or writing to it failed.
    Gone,
    Stopping,
    /// The topic whose URL it is on was left.
    TopicLeft,
    TooLong,
    Idle,
    Protocol,
    /// A text message that is not UTF-8.
    Text,
    /// It goes on and on although it is told that it is too fast.
    Flooding,
}

impl From<Gone> for End {
    fn from(_: Gone) -> Self {
        Self::Gone
    }
}

impl Session {
    /// Says goodbye. What was published and not yet answered is answered first.
    pub(super) async fn finish(&mut self, end: End) {
        // What was published goes its way, also of a client that left at once.
        let ended = async {
            while let Some(done) = self.under_way.next().await {
                if !matches!(end, End::Left | End::Gone) && self.done(done).await.is_err() {
                    break;
                }
            }
        };
        // Nobody waits longer for a store that is stuck.
        let _ = tokio::time::timeout(PARTING, ended).await;
        let farewell = match end {
            // Nothing more can be said, and it was waited for long enough.
            End::Gone => None,
            // Sends what is queued, the answer to the client's own Close among it (RFC 6455 §5.5.1).
            // Should the client be gone, nobody misses it.
            End::Left => {
                let _ = self.out.flush().await;
                None
            }
            End::Stopping => Some((CloseCode::Away, "the gateway is shutting down")),
            End::TopicLeft => {
                // Many clients show a notice, and close reasons to nobody.
                let _ = self.send(message::notice(TOPIC_LEFT)).await;
                Some((CloseCode::Away, TOPIC_LEFT))
            }
            End::TooLong => {
                let max = self.relay.config.max_message_bytes;
                let notice = message::notice(&format!(
                    "invalid: a message has at most {max} bytes (max_message_length)"
                ));
                // The close frame says the same, should this fail.
                let _ = self.send(notice).await;
                Some((CloseCode::Size, "the message is too long"))
            }
            End::Idle => Some((CloseCode::Away, "the connection was idle")),
            End::Text => Some((CloseCode::Invalid, "text messages are UTF-8")),
            End::Flooding => Some((CloseCode::Policy, "rate-limited: far too many messages")),
            End::Protocol => Some((CloseCode::Protocol, "this is not the websocket protocol")),
        };
        if let Some((code, reason)) = farewell {
            self.out.close(code, reason).await;
            self.out.linger().await;
        }
    }
}
