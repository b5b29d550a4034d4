//! What a client is answered that sends too much.

use super::{End, Session};
use crate::{
    protocol::{
        Reason,
        message::{self, ClientMessage},
    },
    relay::rates::RateLimited,
};

impl Session {
    /// To be asked for every message, before it is parsed. What it took on the way counts.
    pub(super) fn exceeds_rate(&mut self, bytes: usize) -> Option<RateLimited> {
        let bytes = self.out.socket.get_mut().account(bytes);
        self.rates.as_ref()?.message(bytes).err()
    }

    /// Answers what would have been asked: OK, CLOSED or NEG-ERR, and NOTICE where none of them fits
    /// (NIP-01). What gives something back is done.
    pub(super) async fn refuse_for_rate(
        &mut self,
        text: &str,
        limited: RateLimited,
    ) -> Result<(), End> {
        let reason: &Reason = &self.patience(limited)?;
        let answer = match message::parse(text, self.relay.config.max_filters) {
            Ok(ClientMessage::Event(event) | ClientMessage::Auth(event)) => {
                message::ok(&event.id, false, &reason.to_string())
            }
            Ok(ClientMessage::Req { subscription, .. }) => {
                // After CLOSED there is no such subscription, whatever was open under this id.
                self.forget(&subscription.as_str().into());
                message::closed(&subscription, reason)
            }
            Ok(ClientMessage::Count { subscription, .. }) => message::closed(&subscription, reason),
            Ok(
                ClientMessage::NegOpen { subscription, .. }
                | ClientMessage::NegMessage { subscription, .. },
            ) => {
                self.close_negentropy(&subscription.as_str().into());
                message::neg_error(&subscription, reason)
            }
            Ok(ClientMessage::Close { subscription }) => {
                self.forget(&subscription.into());
                return Ok(());
            }
            Ok(ClientMessage::NegClose { subscription }) => {
                self.close_negentropy(&subscription.into());
                return Ok(());
            }
            Err(_) => message::notice(&reason.to_string()),
        };
        self.send(answer).await
    }

    /// The reason to answer with, as long as the client is borne with.
    pub(super) fn patience(&self, limited: RateLimited) -> Result<Reason, End> {
        self.relay.count_limited("messages");
        if limited.flooding { Err(End::Flooding) } else { Ok(limited.reason) }
    }
}
